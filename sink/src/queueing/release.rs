//! Releases queued Jobs when a slot is free.
//!
//! This only proposes: the webhook's `/validate` decides each release as it decides each create, so that a stale watch
//! cache can cause a refusal and a later retry, never an exceeded limit.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt, channel::mpsc, stream};
use jiff::Timestamp;
use job_handler_shared::{
    job::{queued_entry, snapshot::JobSnapshot},
    keys,
    kube::error::ApiError,
    names,
    text::human_seconds,
};
use kube::Client;
use serde_json::json;

use crate::{
    jobs::patch,
    notify::recorder::{EventSpec, EventType, Recorder, job_reference},
    observe::store::Store,
    queueing::{
        failure_backoff::{self, BackoffWait},
        position_events::{self, PositionEvents},
        queue_position::queue_positions,
        release_order::{QueueHold, ReleaseRetry, releasable},
        slots::{LimitedJob, limited_jobs},
    },
};

/// Least time between two rounds; changes within it are handled together.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// With very many Jobs a round itself takes long: the pause is this many times its duration, at most [`MAX_PAUSE`].
const PAUSE_FACTOR: u32 = 9;
/// Longest pause after a long round.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// A round without any change, in case a watch missed one.
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// How long the number of failed releases is remembered after the pause.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Releases per round; each is a change that causes another round.
const MAX_RELEASES: usize = 50;
/// Simultaneous writes of Events. They run beside the releases, which never wait for a single Event.
const EVENT_WRITES: usize = 8;
/// Events in the channel; a full channel delays the releases.
const EVENT_QUEUE: usize = 1024;
/// Namespaces at a time. Within a namespace releases are made one after the other, so that the first stays first.
const CONCURRENT_NAMESPACES: usize = 16;

/// Releases queued Jobs until it is dropped.
pub(crate) async fn run(client: Client, store: Store, recorder: Recorder) -> Infallible {
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let publish = events.for_each_concurrent(EVENT_WRITES, |event: EventSpec| {
        let recorder = recorder.clone();
        async move {
            if let Err(error) = recorder.publish(&event).await {
                let (namespace, event) = (&event.namespace, &event.name);
                tracing::warn!(namespace, event, "cannot write an Event about a queued Job: {error}");
            }
        }
    });
    // Publishing ends only after the loop, which has the sender.
    tokio::join!(release_loop(client, store, sender), publish).0
}

async fn release_loop(client: Client, store: Store, mut events: mpsc::Sender<EventSpec>) -> Infallible {
    let mut changes = store.changes();
    let mut retries: HashMap<String, ReleaseRetry> = HashMap::new();
    let mut positions = PositionEvents::default();
    loop {
        changes.borrow_and_update();
        let now = Instant::now();
        retries.retain(|_, retry| retry.until + REMEMBERED > now);
        let jobs = limited_jobs(&store);
        let backoffs = backoffs(&store, &jobs);
        let hold = |uid: &str| match backoffs.contains_key(uid) {
            true => Some(QueueHold::Skipped),
            false => retries.get(uid).filter(|retry| retry.until > now).map(|retry| retry.hold),
        };
        let due = releasable(&jobs, hold).into_iter().take(MAX_RELEASES);
        let elapsed = now.elapsed();
        let Releases { released, failed } = release_in_order(&client, &store, due).await;
        let jobs = if released.is_empty() { jobs } else { limited_jobs(&store) };
        let waiting = queue_positions(&jobs, |job| backoffs.get(&job.uid).cloned());
        let due = positions.due(waiting, Instant::now());
        let due = due.iter().map(|(job, reason)| position_events::event(job, reason));
        for event in released.iter().map(|job| released_event(job)).chain(due) {
            // The receiver is dropped together with this loop.
            _ = events.send(event).await;
        }
        for (uid, error) in failed {
            let retry = ReleaseRetry::after(&error, retries.get(&uid), Instant::now());
            retries.insert(uid, retry);
        }
        tokio::time::sleep((elapsed * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE)).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(until_first(&backoffs).min(MAX_INTERVAL)) => {}
        }
    }
}

/// Queued Jobs whose group waits after failures, by uid.
fn backoffs(store: &Store, jobs: &[LimitedJob]) -> HashMap<String, BackoffWait> {
    let now = Timestamp::now();
    let queued = jobs.iter().map(|limited| &limited.job).filter(|job| job.is_queued());
    queued.filter_map(|job| Some((job.uid.clone(), failure_backoff::wait_of(store, job, now)?))).collect()
}

/// Time until the first backoff ends.
fn until_first(backoffs: &HashMap<String, BackoffWait>) -> Duration {
    let until = backoffs.values().map(|wait| wait.until).min();
    let left = until.map(|until| until.duration_since(Timestamp::now()).max(jiff::SignedDuration::ZERO));
    left.and_then(|left| Duration::try_from(left).ok()).unwrap_or(MAX_INTERVAL)
}

#[derive(Default)]
struct Releases {
    released: Vec<Arc<JobSnapshot>>,
    failed: Vec<(String, ApiError)>,
}

impl Extend<Self> for Releases {
    fn extend<T: IntoIterator<Item = Self>>(&mut self, all: T) {
        for Self { released, failed } in all {
            self.released.extend(released);
            self.failed.extend(failed);
        }
    }
}

/// Releases these Jobs, in order within a namespace. A call without an answer ends its namespace's round, so that a
/// webhook that does not answer costs the time of one call and not of fifty.
async fn release_in_order(
    client: &Client,
    store: &Store,
    jobs: impl Iterator<Item = Arc<JobSnapshot>>,
) -> Releases {
    let mut namespaces: BTreeMap<String, Vec<Arc<JobSnapshot>>> = BTreeMap::new();
    jobs.for_each(|job| namespaces.entry(job.namespace.clone()).or_default().push(job));
    let in_order = |jobs: Vec<Arc<JobSnapshot>>| async move {
        let mut releases = Releases::default();
        for job in jobs {
            match release(client, &job).await {
                Ok(Some(now)) => {
                    tracing::info!(job = job.key(), "released queued Job");
                    // Stored before the next round, which must not rely on the watch being up to date.
                    store.put_job(now);
                    releases.released.push(job);
                }
                // Changed or deleted: the watch reports it.
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(job = job.key(), "cannot release queued Job: {error}");
                    let answered = !matches!(error, ApiError::Timeout { .. } | ApiError::Broken { .. });
                    releases.failed.push((job.uid.clone(), error));
                    if !answered {
                        break;
                    }
                }
            }
        }
        releases
    };
    stream::iter(namespaces.into_values())
        .map(in_order)
        .buffer_unordered(CONCURRENT_NAMESPACES)
        .collect()
        .await
}

/// Un-suspends the observed version of a Job and removes the queue annotation, so that a Job that a user suspends later
/// stays suspended. Returns nothing where the Job has changed.
async fn release(client: &Client, job: &JobSnapshot) -> Result<Option<JobSnapshot>, ApiError> {
    let text = stamped_text(job).map(|text| queued_entry::started(text, &waited(job, Timestamp::now())));
    let started = json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "annotations": {keys::QUEUED_AT: null, keys::STAMPED: text},
        },
        "spec": {"suspend": false},
    });
    match patch::merge(client, job, &format!("release job {}", job.key()), started).await {
        Ok(now) => Ok(Some(now)),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn released_event(job: &JobSnapshot) -> EventSpec {
    let waited_for = stamped_text(job).and_then(queued_entry::waits_for).unwrap_or("a slot");
    EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, keys::REASON_STARTED),
        event_type: EventType::Normal,
        reason: keys::REASON_STARTED,
        action: "Started",
        note: format!(
            "released from the queue after {}: waited for {waited_for}",
            waited(job, Timestamp::now())
        ),
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: None,
    }
}

fn stamped_text(job: &JobSnapshot) -> Option<&str> {
    job.annotations.get(keys::STAMPED).map(String::as_str)
}

/// Time in the queue, as readable text.
fn waited(job: &JobSnapshot, now: Timestamp) -> String {
    let since = job.annotations.get(keys::QUEUED_AT).and_then(|text| text.parse::<Timestamp>().ok());
    human_seconds(now.as_second() - since.unwrap_or(job.created).as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queueing::slots::tests::limited_job;

    /// A release without an answer delays its namespace by one call, and no other namespace.
    #[tokio::test(start_paused = true)]
    async fn an_unanswered_release_delays_only_its_own_namespace() {
        type Body = kube::client::Body;
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            if request.uri().path().contains("/dead/") {
                std::future::pending::<()>().await;
            }
            let kind = if request.uri().path().contains("/jobs/") { "Job" } else { "Event" };
            let job = json!({"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": "x", "uid": "x"},
                "regarding": {}, "eventTime": null});
            let body = Body::from(serde_json::to_vec(&job).unwrap());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        let client = Client::new(service, "default");
        let jobs = (0..50).map(|n| {
            let namespace = if n % 2 == 0 { "dead" } else { "lives" };
            let mut job = limited_job(&n.to_string(), true, &[]).job;
            Arc::make_mut(&mut job).namespace = namespace.into();
            Arc::make_mut(&mut job).name = format!("j{n}");
            job
        });
        let begun = tokio::time::Instant::now();
        let Releases { released, failed } = release_in_order(&client, &Store::default(), jobs).await;
        assert_eq!(released.len(), 25);
        assert_eq!(failed.iter().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["0"]);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}
