//! Handles the refusals that the listener receives: counts them, remembers the last one of each policy and writes
//! their Events.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    kube::error::{ApiError, call},
    ledger::refusal::{Refusal, RefusalKind},
    policy::status::LastRefusal,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    metrics::SinkMetrics,
    model::text::whole_seconds,
    notify::{
        recorder::{EventSpec, Recorder},
        refusal_series::{RefusalSeries, SeriesWrite},
    },
    observe::store::Store,
};

/// Length of the channel of refusals; more are dropped and counted.
pub(crate) const QUEUE: usize = 4096;
/// Simultaneous writes of Events.
const CONCURRENT_WRITES: usize = 8;
/// Attempts to raise an Event's count, which other sinks raise too.
const MAX_ATTEMPTS: usize = 5;

/// Handles refusals for as long as it is polled. `forward` gets those that were refused, for CloudEvents.
pub async fn run(
    mut refusals: mpsc::Receiver<Refusal>,
    store: Store,
    recorder: Recorder,
    metrics: SinkMetrics,
    forward: impl Fn(&Refusal),
) {
    let mut series = RefusalSeries::default();
    let mut writes = JoinSet::new();
    let mut waiting: VecDeque<SeriesWrite> = VecDeque::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        while writes.len() < CONCURRENT_WRITES
            && let Some(next) = waiting.pop_front()
        {
            writes.spawn(write(next, recorder.clone(), metrics.clone()));
        }
        tokio::select! {
            Some(refusal) = refusals.recv() => {
                record(&refusal, &store, &metrics);
                if refusal.decision == RefusalKind::Refused {
                    forward(&refusal);
                }
                let (due, dropped) = series.add(&refusal, Instant::now());
                for _ in 0..dropped {
                    metrics.refusal_dropped("damped");
                }
                waiting.extend(due);
            }
            _ = tick.tick() => waiting.extend(series.due(Instant::now())),
            Some(ended) = writes.join_next(), if !writes.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!("writing an Event about a refusal panicked: {error}");
                }
            }
            else => return,
        }
    }
}

fn record(refusal: &Refusal, store: &Store, metrics: &SinkMetrics) {
    metrics.job_refused(match refusal.decision {
        RefusalKind::Refused => "refused",
        RefusalKind::Queued => "queued",
        RefusalKind::WouldRefuse => "would-refuse",
    });
    if refusal.decision == RefusalKind::Refused {
        let time = Time(whole_seconds(refusal.at));
        let last = LastRefusal::new(&refusal.namespace, &refusal.job, &refusal.message, time);
        store.put_refusal(&refusal.policy.uid, last);
    }
}

/// Best effort: a failed write is counted, and the next write of its series carries the count.
async fn write(write: SeriesWrite, recorder: Recorder, metrics: SinkMetrics) {
    let written = match &write {
        SeriesWrite::First { event, counts } => match recorder.publish(event).await {
            Ok(false) if *counts => raise_count(&recorder, event, 1, Timestamp::now()).await,
            other => other.map(drop),
        },
        SeriesWrite::Count { event, more, last } => raise_count(&recorder, event, *more, *last).await,
    };
    if let Err(error) = written
        && !error.is_terminating()
    {
        metrics.refusal_dropped("not-written");
        tracing::warn!("cannot write an Event about a refusal: {error}");
    }
}

/// Adds to the count of an Event, as other sinks do too. Creates the Event again if it has expired.
async fn raise_count(
    recorder: &Recorder,
    event: &EventSpec,
    more: i32,
    last: Timestamp,
) -> Result<(), ApiError> {
    let api = recorder.api(&event.namespace);
    let what = format!("raise the count of event {}/{}", event.namespace, event.name);
    let params = PatchParams::default();
    let mut attempts = 0;
    loop {
        // An empty patch changes nothing and returns the object: reading it needs no further permission.
        let current = match call(&what, api.patch(&event.name, &params, &Patch::Merge(json!({})))).await {
            Err(error) if error.is_not_found() => return recorder.publish(event).await.map(drop),
            other => other?,
        };
        let series = current.series.as_ref();
        let count = series.map_or(1, |series| series.count).saturating_add(more);
        let last = series.map_or(last, |series| series.last_observed_time.0.max(last));
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": current.metadata.resource_version},
            "series": {"count": count, "lastObservedTime": MicroTime(last)},
        }));
        attempts += 1;
        match call(&what, api.patch(&event.name, &params, &patch)).await {
            Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {}
            other => return other.map(drop),
        }
    }
}
