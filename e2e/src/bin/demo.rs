//! `cargo demo`: boots a real Kubernetes, installs job-handler and shows what it does through `kubectl`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use job_handler_e2e::{demo, harness::command_line};

/// Shows on a real Kubernetes, step by step, what job-handler does. Exits with 0 if every step passed.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct DemoArgs {
    /// Write the steps, with commands and checked facts, to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds that a step waits for each condition.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    patience: u64,
}

fn main() -> ExitCode {
    match run(&command_line::parse::<DemoArgs>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not run: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &DemoArgs) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(demo::run(Duration::from_secs(arguments.patience)))?;
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, json).map_err(|e| anyhow::anyhow!("writing {}: {e}", file.display()))?;
    }
    print!("{}", report.closing());
    Ok(report.ok())
}
