//! `job-handler-webhook`: see `job-handler-webhook --help`.

use anyhow::Context;
use clap::Parser;
use job_handler_webhook::run::{Options, run};

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // Reviews are answered on the server's own threads; these two are for watches, LISTs and the Lease.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(options)).context("job-handler-webhook ends")
}
