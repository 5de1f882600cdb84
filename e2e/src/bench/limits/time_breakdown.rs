//! The time of a create by phase, from the apiserver's metrics, and the processor time by process.

use std::time::Duration;

use crate::bench::limits::limits_cluster::LimitsCluster;
use crate::bench::table::{Table, figure};
use crate::bench::{machine, variants};
use crate::cluster::Component;
use crate::harness::error::Result;
use crate::net::metrics;

/// The columns: name, metric and labels.
const PARTS: [(&str, &str, &[&str]); 5] = [
    (
        "create",
        "apiserver_request_duration_seconds",
        &["group=\"batch\"", "resource=\"jobs\"", "verb=\"POST\"", "dry_run=\"\""],
    ),
    ("mutating webhook", WEBHOOKS, &["operation=\"CREATE\"", "type=\"admit\""]),
    ("validating webhook", WEBHOOKS, &["operation=\"CREATE\"", "type=\"validating\""]),
    ("PUT of the ledger", "apiserver_request_duration_seconds", &["resource=\"jobledgers\"", "verb=\"PUT\""]),
    (
        "etcd: update of the ledger",
        "etcd_request_duration_seconds",
        &["resource=\"jobledgers\"", "operation=\"update\""],
    ),
];
const WEBHOOKS: &str = "apiserver_admission_webhook_admission_duration_seconds";

/// The processes whose processor time is measured.
const PROCESSES: [&str; 5] = ["apiserver", "etcd", "null webhooks", "our webhooks", "our sink"];

/// Seconds and calls of each part, and the processor time of each process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimeBreakdown {
    calls: [(f64, f64); PARTS.len()],
    processors: [Duration; PROCESSES.len()],
}

impl TimeBreakdown {
    /// Reads the totals since the apiserver's start.
    pub(super) async fn read(bench: &LimitsCluster) -> Result<Self> {
        let text = variants::metrics(&bench.cluster).await?;
        let mut times = Self { processors: processors(bench)?, ..Self::default() };
        for (found, (_, metric, labels)) in times.calls.iter_mut().zip(PARTS) {
            let sum = |suffix: &str| metrics::sum(&text, &format!("{metric}_{suffix}"), labels);
            *found = (sum("sum"), sum("count"));
        }
        Ok(times)
    }

    /// Adds the difference of two readings.
    pub(super) fn add(&mut self, before: Self, after: Self) {
        for (n, all) in self.calls.iter_mut().enumerate() {
            all.0 += after.calls[n].0 - before.calls[n].0;
            all.1 += after.calls[n].1 - before.calls[n].1;
        }
        for (n, all) in self.processors.iter_mut().enumerate() {
            *all += after.processors[n].saturating_sub(before.processors[n]);
        }
    }

    /// Milliseconds per call, and processor time in milliseconds per create. A ledger is also written shortly after its
    /// method was measured, so ledger calls during a method without ledgers are omitted.
    pub(super) fn cells(self, creates: u64, ledgers: bool) -> impl Iterator<Item = String> {
        let mean = move |((name, ..), (seconds, calls)): (&(&str, _, _), (f64, f64))| match calls > 0.0
            && (ledgers || !name.contains("ledger"))
        {
            true => figure(seconds * 1e3 / calls),
            false => "-".to_owned(),
        };
        let each = move |time: Duration| figure(time.as_secs_f64() * 1e3 / creates as f64);
        PARTS.iter().zip(self.calls).map(mean).chain(self.processors.into_iter().map(each))
    }
}

fn processors(bench: &LimitsCluster) -> Result<[Duration; PROCESSES.len()]> {
    let of = |component| machine::processor_time(bench.cluster.component(component)?.process().id());
    let webhooks = bench.pair.webhooks().iter();
    let webhooks = webhooks.map(|webhook| machine::processor_time(webhook.process().id()));
    Ok([
        of(Component::Apiserver)?,
        of(Component::Etcd)?,
        machine::processor_time(bench.null.process())?,
        webhooks.sum::<Result<Duration>>()?,
        machine::processor_time(bench.pair.sink().process().id())?,
    ])
}

/// The table without its rows.
pub(super) fn table() -> Table {
    let mut columns = vec!["clients into namespaces, limit method".to_owned()];
    columns.extend(PARTS.iter().map(|(name, _, _)| format!("{name} ms")));
    columns.extend(PROCESSES.iter().map(|name| format!("{name}: CPU ms")));
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("Limits: time breakdown of a create", &columns);
    table.notes = vec![
        "The apiserver's histograms, mean per call over all rounds of the previous table, warm-up included. The time of a \
         create includes that of its webhooks (sequential), the validating webhook includes the PUT of the ledger, and the \
         PUT includes the update in etcd. A PUT may contain many admissions; concurrent clients mostly wait for the \
         current one."
            .to_owned(),
        "Processor time is that of each process (/proc/<pid>/stat) per create in the same rounds; all three webhook replicas \
         watch the Jobs, even without reviews."
            .to_owned(),
    ];
    table
}
