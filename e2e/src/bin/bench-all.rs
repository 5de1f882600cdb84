//! `cargo bench-all`: measures, prints tables and writes `e2e/BENCHMARKS.md`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use job_handler_e2e::bench::{self, BenchPart, reviews::Size, server::Handler};
use job_handler_e2e::harness::command_line;

/// Measures what stamping, limits, harvests and prunes cost, and writes e2e/BENCHMARKS.md.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-all")]
struct BenchArgs {
    /// Measure only these parts; the tables of the others stay in the file.
    parts: Vec<BenchPart>,
    /// Small sizes, a few seconds: shows only that everything works, and does not write the file.
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    command: Option<BenchCommand>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// One of the servers that are measured; bench-all starts it.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        handler: Handler,
        /// The namespace of the policy.
        #[arg(long)]
        namespace: String,
    },
    /// The script that the prune command is compared with.
    #[command(hide = true)]
    NaivePrune {
        #[arg(long)]
        namespace: String,
        #[arg(long)]
        group_label: String,
    },
    /// Calls a handler without a server, for profilers.
    #[command(hide = true)]
    Call {
        #[arg(long)]
        handler: Handler,
        #[arg(long, default_value_t = 1000)]
        milliseconds: u64,
        /// Use the large Job.
        #[arg(long)]
        large: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = command_line::parse::<BenchArgs>();
    match arguments.command {
        Some(BenchCommand::Serve { handler, namespace }) => {
            return Ok(bench::server::serve(handler, &namespace)?);
        }
        Some(BenchCommand::Call { handler, milliseconds, large }) => {
            let review = if large { Size::Large } else { Size::Small }.review()?;
            println!(
                "{:?}",
                bench::handler_calls::call(handler, &review, Duration::from_millis(milliseconds))?
            );
            return Ok(());
        }
        Some(BenchCommand::NaivePrune { namespace, group_label }) => {
            let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
            return Ok(runtime.block_on(bench::prune::naive(&namespace, &group_label))?);
        }
        None => {}
    }
    let program = std::env::current_exe().context("finding this program")?;
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let report = runtime.block_on(bench::run(&program, &arguments.parts, arguments.quick))?;
    if !arguments.quick {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("BENCHMARKS.md");
        let before = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("reading {}", file.display()))?,
        };
        std::fs::write(&file, report.page(&before)).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
