//! `job-handler-sink`: see `job-handler-sink --help`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use job_handler_shared::process::telemetry;
use job_handler_sink::args::SinkArgs;

fn main() -> ExitCode {
    let args = SinkArgs::parse();
    telemetry::init_logs(args.log_format);
    // ring is the only provider of the workspace; this fails only if it is installed already.
    let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result =
        runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(args.execute()));
    result.unwrap_or_else(|error| {
        // The text of an error includes its causes.
        tracing::error!("{error}");
        ExitCode::FAILURE
    })
}
