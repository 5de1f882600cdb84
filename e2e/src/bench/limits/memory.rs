//! Memory of the webhook with many Jobs in the cluster.

use std::time::Duration;

use crate::bench::limits::create_jobs::create_all;
use crate::bench::limits::limits_cluster::{LimitsCluster, NamespaceLimit};
use crate::bench::limits::measure::LimitsEffort;
use crate::bench::machine::{self, ProcessMemory};
use crate::bench::table::{Aim, Table, mib, to_mib};
use crate::harness::error::Result;

const NAMESPACE: &str = "ours-many-0";
/// Creates that the webhook decides with all Jobs in its cache.
const DECIDED: usize = 200;
const AIM: f64 = 60.0;

pub(super) async fn measure(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<Table> {
    let webhook = bench.pair.webhook(0);
    let memory = || machine::memory(webhook.process().id());
    restart(bench).await?;
    let before = memory()?;
    bench.namespace(NAMESPACE, NamespaceLimit::Policy(1_000_000)).await?;
    create_all(&bench.cluster.client(), NAMESPACE, "stored", effort.stored).await?;
    restart(bench).await?;
    let after = memory()?;
    bench.use_replicas(1).await?;
    create_all(&bench.cluster.client(), NAMESPACE, "decided", DECIDED.min(effort.stored)).await?;
    let decided = memory()?;
    let mut table = Table::new(
        "Limits: memory of a webhook replica",
        &["Jobs in the cluster, time of measurement", "MiB resident", "MiB peak"],
    );
    let mut row = |when: &str, memory: ProcessMemory| {
        table.rows.push(vec![when.to_owned(), mib(memory.now), mib(memory.peak)]);
    };
    let stored = effort.stored;
    row("few, after start", before);
    row(&format!("{stored}, after start"), after);
    row(&format!("{stored}, after {DECIDED} more creates"), decided);
    table.aims.push(Aim {
        what: format!("less than {AIM} MiB with {stored} Jobs in the cluster"),
        found: format!("{} MiB, {} MiB peak", mib(decided.now), mib(decided.peak)),
        met: to_mib(decided.peak) < AIM,
    });
    table.notes.push(
        "All Jobs are active and in one namespace, under one limit. VmRSS and VmHWM of a replica that is restarted before \
         each of the first two rows."
            .to_owned(),
    );
    Ok(table)
}

async fn restart(bench: &LimitsCluster) -> Result<()> {
    bench.pair.webhook(0).restart()?;
    bench.pair.wait_ready(Duration::from_secs(120)).await
}
