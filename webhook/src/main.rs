//! `job-handler-webhook`: see `job-handler-webhook --help`.

use std::process::ExitCode;

use clap::Parser;
use job_handler_shared::process::telemetry::init_logs;
use job_handler_webhook::{args::WebhookArgs, run::run};

fn main() -> ExitCode {
    let args = WebhookArgs::parse();
    init_logs(args.log_format);
    // Reviews are answered on the server's own threads; these two run watches, LISTs and the Lease.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(args)).map_err(|error| error.to_string()),
        Err(error) => Err(format!("cannot start the runtime: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The text of an error includes its causes. RUST_LOG may hide log lines, so this is not one.
            eprintln!("job-handler-webhook: error: {error}");
            ExitCode::FAILURE
        }
    }
}
