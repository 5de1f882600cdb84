//! The program `kubectl-job_results`: parses the arguments and calls the library.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::Parser;
use job_handler_plugin::{PluginCli, PluginError, escape_lines, run};

fn main() -> ExitCode {
    let cli = PluginCli::parse();
    // Fails only if a provider is installed already.
    let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let result = runtime.block_on(run(cli, &mut out, &mut std::io::stderr()));
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reading end was closed, as in `… | head`.
        Err(PluginError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    // Messages quote the apiserver and stored results.
    eprintln!("error: {}", escape_lines(message));
    ExitCode::FAILURE
}
