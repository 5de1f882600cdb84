//! The draining of a queue: how long a slot stays free until the next queued Job runs.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::bench::limits::create_jobs::create_all;
use crate::bench::limits::limits_cluster::{LimitsCluster, NamespaceLimit};
use crate::bench::limits::measure::LimitsEffort;
use crate::bench::load::Latencies;
use crate::bench::table::{Aim, Table, figure};
use crate::etcd_history::StoredJobState;
use crate::harness::error::{Error, Result};

const NAMESPACE: &str = "ours-queue-0";
/// The limit.
const SLOTS: u32 = 10;
/// The run time of each Job.
const RUN_TIME: Duration = Duration::from_millis(50);

pub(super) async fn measure(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<Table> {
    bench.use_replicas(3).await?;
    bench.namespace(NAMESPACE, NamespaceLimit::Queue(SLOTS)).await?;
    let client = bench.cluster.client();
    create_all(&client, NAMESPACE, "queued", effort.queued).await?;
    let figures = drain(Api::namespaced(client, NAMESPACE), effort.queued).await?;
    bench.clear(NAMESPACE).await?;
    let mut table = table();
    let ms = |quantile: f64| figures.gaps.quantile(quantile) / 1e3;
    table.rows.push(vec![
        format!("{}, {SLOTS} slots", effort.queued),
        figure(effort.queued as f64 / figures.elapsed.as_secs_f64()),
        figure(ms(0.5)),
        figure(ms(0.99)),
        figure(ms(1.0)),
        figures.max_active.to_string(),
    ]);
    table.aims.push(Aim {
        what: "a median gap of less than 200 ms from a free slot to the next active Job".to_owned(),
        found: format!("{} ms", figure(ms(0.5))),
        met: ms(0.5) < 200.0,
    });
    Ok(table)
}

struct DrainFigures {
    gaps: Latencies,
    elapsed: Duration,
    max_active: usize,
}

/// Completes each running Job once all slots are taken, until all Jobs have run.
async fn drain(jobs: Api<Job>, queued: usize) -> Result<DrainFigures> {
    let slots = SLOTS as usize;
    let state = |job: &Job| StoredJobState::of(&serde_json::to_value(job).unwrap_or_default());
    let list = jobs.list(&ListParams::default()).await.map_err(Error::api("listing the queue"))?;
    let running =
        list.items.iter().filter(|job| state(job) == StoredJobState::Active).map(ResourceExt::name_any);
    let mut active: HashSet<String> = running.collect();
    let (mut finished, mut free) = (0, VecDeque::<Instant>::new());
    let (mut gaps, mut max_active) = (Latencies::new(), active.len());
    // Until the first time that all slots are used, a free slot is not a gap.
    let mut full = None;
    let mut from = list.metadata.resource_version.unwrap_or_default();
    while finished < queued {
        if full.is_none() && active.len() >= slots.min(queued) {
            full = Some(Instant::now());
            active.iter().for_each(|name| drop(tokio::spawn(complete(jobs.clone(), name.clone(), RUN_TIME))));
        }
        let watch = jobs.watch(&WatchParams::default().timeout(120), &from).await;
        let mut events = watch.map_err(Error::api("watching the queue"))?.boxed();
        let seen_so_far = (finished, active.len());
        while let Some(event) = events.try_next().await.map_err(Error::api("watching the queue"))? {
            let (WatchEvent::Added(job) | WatchEvent::Modified(job)) = event else { continue };
            from = job.resource_version().unwrap_or_default();
            match state(&job) {
                StoredJobState::Active if active.insert(job.name_any()) => {
                    // Jobs use the slot that was free first.
                    if let Some(since) = free.pop_front() {
                        gaps.add(since.elapsed());
                    }
                    if full.is_some() {
                        tokio::spawn(complete(jobs.clone(), job.name_any(), RUN_TIME));
                    }
                }
                StoredJobState::Finished if active.remove(&job.name_any()) => {
                    finished += 1;
                    free.push_back(Instant::now());
                }
                _ => {}
            }
            max_active = max_active.max(active.len());
            if finished == queued || (full.is_none() && active.len() >= slots.min(queued)) {
                break;
            }
        }
        if (finished, active.len()) == seen_so_far {
            return Err(Error::Invalid(format!(
                "the queue makes no progress: {finished} of {queued} Jobs have run"
            )));
        }
    }
    // Exceeding the limit is an error.
    if max_active > slots {
        return Err(Error::Invalid(format!("{max_active} Jobs were active at once, the limit is {slots}")));
    }
    let elapsed = full.map_or(Duration::ZERO, |full| full.elapsed());
    Ok(DrainFigures { gaps, elapsed, max_active })
}

/// Completes a Job after it has run for a while.
pub(super) async fn complete(jobs: Api<Job>, name: String, run_time: Duration) {
    tokio::time::sleep(run_time).await;
    let now = Timestamp::now().to_string();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "Bench", "lastTransitionTime": now});
    let status = json!({"status": {
        "startTime": now, "completionTime": now,
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
    }});
    // A Job that stays active makes `drain` fail.
    if let Err(error) = jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await {
        tracing::warn!("the Job {name} could not be completed: {error}");
    }
}

fn table() -> Table {
    let columns = ["Jobs in the queue", "Jobs/s", "gap ms p50", "gap ms p99", "gap ms max", "max active"];
    let mut table = Table::new("Limits: draining a queue", &columns);
    table.notes = vec![format!(
        "All Jobs are created at once under a limit with whenFull Queue; the sink releases them in order. The Job controller \
         is paused; once all slots are taken, the benchmark completes each Job {RUN_TIME:?} after it became active. A gap is \
         the time from the watch event of a finished Job to that of the next active one."
    )];
    table
}
