//! Memory of the webhook where many Jobs are in the cluster.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};

use super::Effort;
use super::ground::{Ground, Limited};
use super::refusals::post;
use crate::bench::machine::{self, Memory};
use crate::bench::report::{Aim, Table, figure};
use crate::harness::error::{Error, Result};

const NAMESPACE: &str = "ours-many-0";
const CLIENTS: usize = 20;
/// Creates that are decided while all the Jobs are there.
const DECIDED: usize = 200;
const AIM: f64 = 60.0;

pub(super) async fn measure(ground: &Ground, effort: &Effort) -> Result<Table> {
    let webhook = ground.pair.webhook(0);
    let look = || machine::memory(webhook.process().id());
    restarted(ground).await?;
    let before = look()?;
    ground.namespace(NAMESPACE, Limited::Policy(1_000_000)).await?;
    // By the other replicas, so that this one sees them as they are, not as they come.
    create(ground, "stored", effort.stored).await?;
    restarted(ground).await?;
    let after = look()?;
    ground.ask(1).await?;
    create(ground, "decided", DECIDED.min(effort.stored)).await?;
    let decided = look()?;
    let mut table = Table::new(
        "Limits: memory of a webhook replica",
        &["Jobs in the cluster, when", "MiB resident", "MiB at its peak"],
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut row = |when: &str, memory: Memory| {
        table.rows.push(vec![when.to_owned(), figure(mib(memory.now)), figure(mib(memory.peak))]);
    };
    let stored = effort.stored;
    row("few, after its start", before);
    row(&format!("{stored}, after its start"), after);
    row(&format!("{stored}, after {DECIDED} decisions about them"), decided);
    table.aims.push(Aim {
        what: format!("less than {AIM} MiB with {stored} Jobs in the cluster"),
        found: format!("{} MiB, {} MiB at its peak", figure(mib(decided.now)), figure(mib(decided.peak))),
        met: mib(decided.peak) < AIM,
    });
    table.notes.push(
        "All Jobs are active and in one namespace, under one limit. VmRSS and VmHWM of a replica that began anew for each \
         of the first two rows."
            .to_owned(),
    );
    Ok(table)
}

async fn restarted(ground: &Ground) -> Result<()> {
    ground.pair.webhook(0).restart()?;
    ground.pair.wait_ready(Duration::from_secs(120)).await
}

async fn create(ground: &Ground, prefix: &str, number: usize) -> Result<()> {
    let client = ground.cluster.client();
    let creating = (0..number).map(|n| {
        let (client, name) = (client.clone(), format!("{prefix}-{n}"));
        async move { post(&client, NAMESPACE, &name).await }
    });
    let refused: Vec<String> = futures::stream::iter(creating)
        .buffer_unordered(CLIENTS)
        .try_filter_map(|made| async move { Ok(made.err()) })
        .try_collect()
        .await?;
    match refused.first() {
        Some(why) => Err(Error::Invalid(format!("a Job within the limit was refused: {why}"))),
        None => Ok(()),
    }
}
