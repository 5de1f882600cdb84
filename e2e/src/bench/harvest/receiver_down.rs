//! The memory of the sink for pending CloudEvents while a receiver is down.

use std::time::Duration;

use crate::bench::harvest::cluster::{HarvestCluster, wait_harvested};
use crate::bench::harvest::disturbance::Disturbance;
use crate::bench::harvest::fault_isolation;
use crate::bench::machine;
use crate::bench::seed::request_results;
use crate::bench::table::{Aim, Table, figure, mib};
use crate::harness::error::Result;
use crate::harness::wait::wait_for;

/// Jobs of each batch.
pub const JOBS: usize = 2_000;
/// The aim in KiB of memory per pending result, which is enough for its name only.
const AIM_KIB: f64 = 2.0;

/// Boots a cluster and measures.
///
/// # Errors
/// If something does not start, or a result is missing.
pub async fn measure(jobs: usize) -> Result<Table> {
    let mut bench = fault_isolation::start(3).await?;
    let sink = bench.sink();
    let mut table =
        Table::new("Memory of the sink while a receiver is down", &["measured", "MiB", "KiB/Job"]);
    let batches = [
        // Buffers, pools and caches grow with the first batch.
        ("first batch", None),
        ("without a receiver", None),
        ("pending for the receiver", Some(Disturbance::ReceiverDown)),
    ];
    let (mut before, mut per_job) = (machine::memory(sink)?.now, Vec::new());
    for (name, disturbance) in batches {
        harvest(&mut bench, disturbance, jobs).await?;
        if disturbance.is_some() {
            wait_pending(&bench, jobs).await?;
        }
        let now = machine::memory(sink)?.now;
        let each = now.saturating_sub(before) as f64 / 1024.0 / jobs as f64;
        table.rows.push(vec![format!("after {jobs} results, {name}"), mib(now), figure(each)]);
        before = now;
        per_job.push(each);
    }
    let more = per_job[2] - per_job[1];
    table.aims.push(Aim {
        what: format!("a pending result uses at most {AIM_KIB} KiB more than a delivered one"),
        found: format!("{} KiB", figure(more)),
        met: more <= AIM_KIB,
    });
    table.notes.push(
        "Three batches of finished Jobs, one after the other. Memory grows with the Jobs and results in the sink's caches. \
         For a pending result the sink stores only its name, and reads the rest when it delivers the CloudEvent, so that \
         memory does not grow while the receiver is down. The last batch is measured when the sink's metric counts all \
         results as pending."
            .to_owned(),
    );
    Ok(table)
}

/// Harvests a batch, with or without a receiver.
async fn harvest(bench: &mut HarvestCluster, disturbance: Option<Disturbance>, jobs: usize) -> Result<()> {
    let (client, namespace) = (bench.cluster.client(), bench.next_namespace()?);
    bench.seed(&namespace, "faulty", jobs, true).await?;
    match disturbance {
        Some(disturbance) => bench.begin(disturbance, &namespace).await?,
        None => request_results(&client, &namespace).await?,
    }
    wait_harvested(&client, &namespace, jobs).await
}

/// Waits until the sink reports this number of pending CloudEvents.
async fn wait_pending(bench: &HarvestCluster, jobs: usize) -> Result<()> {
    const PENDING: &str = "job_handler_cloudevents_pending{";
    wait_for(Duration::from_secs(60), "all events to be pending", || async {
        let (_, text) = bench.pair.sink().get("/metrics").await.map_err(|error| error.to_string())?;
        let line = text.lines().find(|line| line.starts_with(PENDING)).unwrap_or(PENDING);
        let found = line.rsplit(' ').next().and_then(|value| value.parse().ok());
        if found == Some(jobs) { Ok(()) } else { Err(line.to_owned()) }
    })
    .await
}
