//! `job-handler-certs`: see `job-handler-certs --help`.

use std::process::ExitCode;

use clap::Parser;
use job_handler_shared::process::telemetry;

mod args;
mod commands;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = args::CertsArgs::parse();
    telemetry::init_logs(telemetry::LogFormat::Text);
    match commands::run(args.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The texts of our errors include their causes.
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
