//! `kubectl job-results`: a plugin of kubectl; arguments in, the library's `plugin::run`.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::Parser;
use job_handler_plugin::{ReadError, cli::Cli, sanitize};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The one provider of the workspace; it fails only where one was installed before.
    let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start the runtime: {error}")),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let answer = runtime.block_on(job_handler_plugin::run(cli, &mut out, &mut std::io::stderr()));
    match answer.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has read enough, as in `… | head`.
        Err(ReadError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    // Some of it are others' words.
    eprintln!("error: {}", sanitize::lines(why));
    ExitCode::FAILURE
}
