//! Delivers CloudEvents about stored and running Jobs, with one loop per receiver: an unavailable one delays neither the
//! others nor a harvest.
//!
//! Where pending events are stored:
//! - *completed*, *failed*: in the manifest of the result, which is written with them, until the receiver has accepted
//!   them. An annotation of the result lists the receivers.
//! - *started*: nowhere; it follows from the Job's state. The leader remembers which receivers got it, and delivers it
//!   again with the same id where it does not know. A Job that finishes before adds it to its manifest. It is lost only
//!   if the Job is deleted while it runs and the receiver is unavailable.
//! - *refused*: in [`crate::cloudevents::refusal_spool`].
//!
//! Each event is delivered at least once across restarts, in the order of its Job's phases.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use job_handler_shared::process::{failure_log::FailureLog, jitter::exponential};
use kube::Client;
use tokio::time::Instant;

use crate::{
    cloudevents::{
        client::{DeliveryError, EventReceiver, HttpReceiver, delivery_backoff},
        event::CloudEvent,
    },
    metrics::SinkMetrics,
    model::job_change::Uid,
    observe::store::Store,
    result::{lookup, manifest_update},
    runtime::resync::RESYNC,
};

/// Concurrent Jobs per receiver.
const CONCURRENT_JOBS: usize = 8;
/// Jobs per round.
const JOBS_PER_ROUND: usize = 256;
/// Changes within this time are handled together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Pause before the events of a Job are retried for the first time; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause before a rejected event is retried.
const MAX_REJECTED_PAUSE: Duration = Duration::from_secs(600);
/// The same after an error of the apiserver, which may be back at any moment.
const MAX_API_PAUSE: Duration = Duration::from_secs(30);

/// Delivers to all receivers until it is dropped; only on the leader.
pub(crate) async fn run(
    receivers: Vec<Arc<HttpReceiver>>,
    client: Client,
    store: Store,
    metrics: SinkMetrics,
) -> Infallible {
    let each = receivers.into_iter().map(|receiver| {
        Box::pin(
            Outbox { receiver, client: client.clone(), store: store.clone(), metrics: metrics.clone() }.run(),
        )
    });
    futures::future::join_all(each).await;
    // There is no receiver.
    std::future::pending().await
}

/// The deliveries to one receiver.
struct Outbox<R> {
    receiver: Arc<R>,
    client: Client,
    store: Store,
    metrics: SinkMetrics,
}

/// Jobs whose deliveries failed: how often, and when they are retried.
type RetryTimes = HashMap<Uid, (u32, Instant)>;

impl<R: EventReceiver> Outbox<R> {
    async fn run(self) -> Infallible {
        let sink = self.receiver.name().to_owned();
        let mut changes = self.store.changes();
        let mut backoff = delivery_backoff();
        let mut failures = FailureLog::default();
        let mut unavailable = false;
        let mut retries = RetryTimes::new();
        loop {
            changes.mark_unchanged();
            let mut pending = self.store.jobs_with_pending_events(&sink);
            self.metrics.set_events_pending(&sink, pending.len());
            retries.retain(|uid, _| pending.contains(uid));
            let now = Instant::now();
            pending.retain(|uid| retries.get(uid).is_none_or(|(_, at)| *at <= now));
            let more = pending.len() > JOBS_PER_ROUND;
            // One event is enough to find out that it is available again.
            pending.truncate(if unavailable { 1 } else { JOBS_PER_ROUND });
            let some = !pending.is_empty();
            match self.deliver_round(pending, &mut retries).await {
                Ok(()) if some => {
                    backoff.reset();
                    if failures.succeeded() {
                        tracing::info!(receiver = sink, "the receiver accepts CloudEvents again");
                    }
                    if more || std::mem::take(&mut unavailable) {
                        continue;
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    unavailable = true;
                    self.metrics.event_failed(&sink);
                    if failures.is_due(&error.to_string()) {
                        tracing::warn!(receiver = sink, "cannot deliver CloudEvents: {error}; retrying");
                    }
                    backoff.wait().await;
                    continue;
                }
            }
            let wake = retries
                .values()
                .map(|(_, at)| *at)
                .min()
                .map_or(Instant::now() + RESYNC, |at| at.min(Instant::now() + RESYNC));
            tokio::select! { _ = changes.changed() => {}, () = tokio::time::sleep_until(wake) => {} }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    /// Delivers the events of some Jobs, until the receiver is unavailable.
    async fn deliver_round(&self, pending: Vec<Uid>, retries: &mut RetryTimes) -> Result<(), DeliveryError> {
        let mut deliveries = stream::iter(pending)
            .map(|uid| async move {
                let outcome = self.deliver_job(&uid).await;
                (uid, outcome)
            })
            .buffer_unordered(CONCURRENT_JOBS);
        while let Some((uid, outcome)) = deliveries.next().await {
            match outcome {
                Ok(()) => _ = retries.remove(&uid),
                Err(error @ (DeliveryError::Rejected(_) | DeliveryError::Api(_))) => {
                    let attempts = retries.get(&uid).map_or(0, |(attempts, _)| *attempts) + 1;
                    let longest = if matches!(error, DeliveryError::Api(_)) {
                        MAX_API_PAUSE
                    } else {
                        MAX_REJECTED_PAUSE
                    };
                    let pause = exponential(FIRST_PAUSE, longest, attempts - 1);
                    self.metrics.event_failed(self.receiver.name());
                    if attempts == 1 {
                        let receiver = self.receiver.name();
                        tracing::warn!(
                            receiver,
                            uid,
                            "cannot deliver the CloudEvents of a Job: {error}; retrying"
                        );
                    }
                    retries.insert(uid, (attempts, Instant::now() + pause));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Delivers the pending events of one Job, in order.
    async fn deliver_job(&self, uid: &str) -> Result<(), DeliveryError> {
        let sink = self.receiver.name();
        let result =
            self.store.results_of_uid(uid).into_iter().find(|result| result.outbox.iter().any(|n| n == sink));
        let Some(result) = result else { return self.deliver_started(uid).await };
        let (seal, namespace) = (&self.store.seal, &result.namespace);
        let found =
            lookup::read_sealed(&self.client, seal, result.kind, namespace, &result.name, uid).await?;
        if let Some(found) = found {
            for phase in found.manifest.cloud_events_pending.get(sink).into_iter().flatten() {
                let event = CloudEvent::of_manifest(*phase, &found.manifest, found.kind, &found.name);
                self.deliver(&event).await?;
            }
            manifest_update::update_manifest(&self.client, seal, &found, |manifest| {
                manifest.cloud_events_pending.remove(sink).is_some()
            })
            .await?;
        }
        // Otherwise the object was edited or deleted: there is nothing to deliver.
        let mut done = result;
        done.outbox.retain(|name| name != sink);
        self.store.put_result(uid, done);
        Ok(())
    }

    async fn deliver_started(&self, uid: &str) -> Result<(), DeliveryError> {
        let sink = self.receiver.name();
        let group = self.store.group_of(uid).map(|(_, group)| group.value);
        let job = self.store.job(uid).filter(|job| job.finished.is_none());
        let Some(event) = job.and_then(|job| CloudEvent::started(&job, group.as_deref())) else {
            return Ok(());
        };
        self.deliver(&event).await?;
        self.store.set_started_delivered(uid, sink);
        Ok(())
    }

    async fn deliver(&self, event: &CloudEvent) -> Result<(), DeliveryError> {
        self.receiver.deliver(event).await?;
        self.metrics.event_delivered(self.receiver.name(), event.phase);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
