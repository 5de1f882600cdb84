//! `cargo bench-all`: measures, prints tables and writes `e2e/BENCHMARKS.md`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use job_handler_e2e::bench::{self, Part, reviews::Size, server::Handler};

/// Measures what stamping and limits cost; writes e2e/BENCHMARKS.md.
#[derive(Debug, Parser)]
#[command(name = "cargo bench-all")]
struct Arguments {
    /// Measure only these parts; the other parts' tables stay in the file as they are.
    parts: Vec<Part>,
    /// A few seconds instead of minutes, to see that everything works; the file stays as it is.
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One of the servers that are measured; started by bench-all itself.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        handler: Handler,
        /// The namespace of the policy.
        #[arg(long)]
        namespace: String,
    },
    /// The script that `prune` is measured beside.
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
        /// With the large Job.
        #[arg(long)]
        large: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Serve { handler, namespace }) => return Ok(bench::server::serve(handler, &namespace)?),
        Some(Command::Call { handler, milliseconds, large }) => {
            let review = if large { Size::Large } else { Size::Small }.review()?;
            println!("{:?}", bench::calls::call(handler, &review, Duration::from_millis(milliseconds))?);
            return Ok(());
        }
        Some(Command::NaivePrune { namespace, group_label }) => {
            let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
            return Ok(runtime.block_on(bench::sweep::naive(&namespace, &group_label))?);
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
