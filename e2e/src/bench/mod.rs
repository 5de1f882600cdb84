//! Benchmarks: what stamping costs, always beside something that costs less and something that costs more.
//!
//! Absolute figures are of one machine and one hour; the ratios are what to read, so whatever is compared runs in
//! turns, in the same minutes, and a round's ratio is taken within the round.

pub mod calls;
pub mod cleanup_latency;
pub mod creates;
pub mod handlers;
pub mod harvest;
pub mod limits;
pub mod load;
pub mod machine;
mod markdown;
pub mod native_policy;
pub mod report;
pub mod reviews;
pub mod seed;
pub mod server;
pub mod sweep;
pub mod variants;
pub mod webhook_only;

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use crate::harness::error::{Error, Result};
use harvest::{fault_isolation, receiver_down};
use machine::Machine;
use report::Table;

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The webhook alone, over TLS.
    Webhook,
    /// Job creates through the apiserver.
    Creates,
    /// Harvests of finished Jobs.
    Harvest,
    /// Harvests beside Jobs with which something is wrong.
    Disturbed,
    /// The sink's memory while a receiver of CloudEvents is away.
    Away,
    /// Prunes of old Jobs.
    Prune,
    /// Limits: creates, refusals, queues, memory.
    Limits,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    machine: Machine,
    tables: Vec<Table>,
}

/// Runs some parts, or all where none is named, and prints each table as soon as it is there. `program` is `bench-all`,
/// whose hidden subcommand `serve` is the servers that are measured.
///
/// # Errors
/// If anything does not run, or answers wrongly.
pub async fn run(program: &Path, parts: &[Part], quick: bool) -> Result<Report> {
    let mut report = Report { machine: machine::machine()?, tables: Vec::new() };
    println!("{}", report.machine);
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    if wanted(Part::Webhook) {
        let effort = match quick {
            true => webhook_only::Effort { rounds: 1, time: Duration::from_millis(100) },
            false => webhook_only::Effort { rounds: 9, time: Duration::from_millis(700) },
        };
        report.add(webhook_only::measure(program, effort).await?);
        report.add(calls::measure(effort.rounds, effort.time / 4)?);
    }
    if wanted(Part::Creates) {
        let effort = match quick {
            true => webhook_only::Effort { rounds: 1, time: Duration::from_millis(100) },
            false => webhook_only::Effort { rounds: 8, time: Duration::from_millis(700) },
        };
        report.add(creates::measure(program, effort, &creates::CLIENTS).await?);
    }
    if wanted(Part::Harvest) {
        let sizes = if quick { harvest::Sizes::QUICK } else { harvest::Sizes::default() };
        for table in harvest::measure(sizes.from_environment()?).await? {
            report.add(table);
        }
    }
    if wanted(Part::Disturbed) {
        let sizes = if quick { fault_isolation::Sizes::QUICK } else { fault_isolation::Sizes::default() };
        report.add(fault_isolation::measure(sizes).await?);
    }
    if wanted(Part::Away) {
        report.add(receiver_down::measure(if quick { 20 } else { receiver_down::JOBS }).await?);
    }
    if wanted(Part::Prune) {
        let sizes = if quick { sweep::Sizes::QUICK } else { sweep::Sizes::default() };
        report.add(sweep::measure(program, sizes.from_environment()?).await?);
    }
    if wanted(Part::Limits) {
        let effort = if quick { limits::Effort::quick() } else { limits::Effort::whole() };
        let effort = effort.from_environment()?;
        limits::measure(program, &effort, |table| report.add(table)).await?;
    }
    Ok(report)
}

/// A number that somebody wants instead of the default: `BENCH_HARVEST_JOBS=10000 cargo bench-all harvest`.
fn wished(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .map_err(|error| Error::Invalid(format!("{variable}={text}: expected a number: {error}"))),
        Err(_) => Ok(default),
    }
}

impl Report {
    fn add(&mut self, table: Table) {
        println!("\n{}", table.text());
        self.tables.push(table);
    }

    /// The tables.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The Markdown page with what was measured now; of `before`, the page as it was, it keeps the tables that were not.
    pub fn page(&self, before: &str) -> String {
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
        let measured = format!("Measured on {date}. {}", self.machine);
        let now = self.tables.iter().map(|table| (table.title.as_str(), table.markdown(&measured)));
        markdown::merged(before, now)
    }
}
