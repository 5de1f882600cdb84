//! `cargo demo`: boots a real Kubernetes, installs the pair, tells its main job through `kubectl`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use job_handler_e2e::demo;

/// Tells job-handler's main job on a real Kubernetes, step by step; exits 0 if every step went as told.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct Arguments {
    /// Write the steps, with what was seen, to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds that a step waits for what it tells.
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    patience: u64,
}

fn main() -> ExitCode {
    match tell(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not be told: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn tell(arguments: &Arguments) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(demo::run(Duration::from_secs(arguments.patience)))?;
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, json).map_err(|e| anyhow::anyhow!("writing {}: {e}", file.display()))?;
    }
    print!("{}", report.closing());
    Ok(report.ok())
}
