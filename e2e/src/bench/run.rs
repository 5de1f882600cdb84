//! Runs the chosen parts, prints each table as soon as it is complete, and merges them into the page.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use crate::bench::harvest::{self, HarvestSizes, fault_isolation, receiver_down};
use crate::bench::limits::{self, LimitsEffort};
use crate::bench::machine::{self, Machine};
use crate::bench::prune::{self, PruneSizes};
use crate::bench::table::Table;
use crate::bench::webhook_only::{self, LoadEffort};
use crate::bench::{creates, handler_calls, markdown};
use crate::harness::error::Result;

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// The webhook alone, over TLS.
    Webhook,
    /// Job creates through the apiserver.
    Creates,
    /// Harvests of finished Jobs.
    Harvest,
    /// Harvests beside faulty Jobs.
    FaultIsolation,
    /// The sink's memory while a receiver of CloudEvents is down.
    ReceiverDown,
    /// Prunes of old Jobs.
    Prune,
    /// Limits: creates, refusals, queues, memory.
    Limits,
}

/// The tables of a run.
#[derive(Clone, Debug)]
pub struct BenchReport {
    machine: Machine,
    tables: Vec<Table>,
}

/// Runs the given parts, or all if none is given. `program` is `bench-all`, whose hidden subcommand `serve` starts the
/// servers that are measured.
///
/// # Errors
/// If something does not start, or answers incorrectly.
pub async fn run(program: &Path, parts: &[BenchPart], quick: bool) -> Result<BenchReport> {
    let mut report = BenchReport { machine: machine::machine()?, tables: Vec::new() };
    println!("{}", report.machine);
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let load = |rounds| match quick {
        true => LoadEffort { rounds: 1, time: Duration::from_millis(100) },
        false => LoadEffort { rounds, time: Duration::from_millis(700) },
    };
    if wanted(BenchPart::Webhook) {
        let effort = load(9);
        report.add(webhook_only::measure(program, effort).await?);
        report.add(handler_calls::measure(effort.rounds, effort.time / 4)?);
    }
    if wanted(BenchPart::Creates) {
        report.add(creates::measure(program, load(8), &creates::CLIENTS).await?);
    }
    if wanted(BenchPart::Harvest) {
        let sizes = if quick { HarvestSizes::QUICK } else { HarvestSizes::default() };
        for table in harvest::measure(sizes.from_environment()?).await? {
            report.add(table);
        }
    }
    if wanted(BenchPart::FaultIsolation) {
        let sizes = match quick {
            true => fault_isolation::FaultIsolationSizes::QUICK,
            false => fault_isolation::FaultIsolationSizes::default(),
        };
        report.add(fault_isolation::measure(sizes).await?);
    }
    if wanted(BenchPart::ReceiverDown) {
        report.add(receiver_down::measure(if quick { 20 } else { receiver_down::JOBS }).await?);
    }
    if wanted(BenchPart::Prune) {
        let sizes = if quick { PruneSizes::QUICK } else { PruneSizes::default() };
        report.add(prune::measure(program, sizes.from_environment()?).await?);
    }
    if wanted(BenchPart::Limits) {
        let effort = if quick { LimitsEffort::quick() } else { LimitsEffort::full() };
        let effort = effort.from_environment()?;
        limits::measure(program, &effort, |table| report.add(table)).await?;
    }
    Ok(report)
}

impl BenchReport {
    fn add(&mut self, table: Table) {
        println!("\n{}", table.text());
        self.tables.push(table);
    }

    /// The Markdown page: the tables of this run replace those of the same title in `before`, all others stay.
    pub fn page(&self, before: &str) -> String {
        let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
        let measured = format!("Measured on {date}. {}", self.machine);
        let now = self.tables.iter().map(|table| (table.title.as_str(), table.markdown(&measured)));
        markdown::merged(before, now)
    }
}
