//! What the sink holds in memory of results that a receiver is still to be told of, while it is away.

use std::time::Duration;

use crate::bench::harvest::fault_isolation::{Ground, Trouble};
use crate::bench::machine;
use crate::bench::report::{Aim, Table, figure};
use crate::harness::error::Result;
use crate::harness::wait::wait_for;

/// Jobs whose results wait.
pub const JOBS: usize = 2_000;
/// So many KiB of memory for each result that waits would be more than its name.
const MOST: f64 = 2.0;

/// Measures on a cluster of its own.
///
/// # Errors
/// If anything does not run, or a result is missing.
pub async fn measure(jobs: usize) -> Result<Table> {
    let mut ground = Ground::new(3).await?;
    let sink = ground.pair.sink().process().id();
    let mut table = Table::new("The sink's memory while a receiver is away", &["what", "MiB", "KiB/Job"]);
    // Buffers, pools and caches grow with the first.
    let batches = [
        ("first", None),
        ("told to nobody", None),
        ("waiting for the receiver", Some(Trouble::ReceiverDown)),
    ];
    let (mut before, mut per_job) = (machine::memory(sink)?.now, Vec::new());
    for (what, trouble) in batches {
        ground.harvest(trouble, jobs).await?;
        if trouble.is_some() {
            pending(&ground, jobs).await?;
        }
        let now = machine::memory(sink)?.now;
        let each = now.saturating_sub(before) as f64 / 1024.0 / jobs as f64;
        table.rows.push(vec![
            format!("after {jobs} results, {what}"),
            figure(now as f64 / f64::from(1 << 20)),
            figure(each),
        ]);
        (before, per_job) = (now, [per_job, vec![each]].concat());
    }
    let more = per_job[2] - per_job[1];
    table.aims.push(Aim {
        what: format!("a result that waits takes at most {MOST} KiB more than one that does not"),
        found: format!("{} KiB", figure(more)),
        met: more <= MOST,
    });
    table.notes.push(
        "Three batches, one after the other, each of so many Jobs that have finished; what grows with them is what the sink \
         remembers of Jobs and results. Of a result that waits it remembers that, and reads what is to be told when it is: \
         so nothing grows with the time that the receiver is away. The last batch stays until the sink says that all of it \
         is pending."
            .to_owned(),
    );
    Ok(table)
}

/// Waits until the sink says that so many Jobs' events are pending.
async fn pending(ground: &Ground, jobs: usize) -> Result<()> {
    const PENDING: &str = "job_handler_cloudevents_pending{";
    wait_for(Duration::from_secs(60), "all events to be pending", || async {
        let (_, text) = ground.pair.sink().get("/metrics").await.map_err(|error| error.to_string())?;
        let line = text.lines().find(|line| line.starts_with(PENDING)).unwrap_or(PENDING);
        let found = line.rsplit(' ').next().and_then(|value| value.parse().ok());
        if found == Some(jobs) { Ok(()) } else { Err(line.to_owned()) }
    })
    .await
}
