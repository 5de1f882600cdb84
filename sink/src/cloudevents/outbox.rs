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

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::time::Instant;

use crate::{
    cloudevents::{
        client::{DeliveryBackoff, DeliveryError, EventReceiver, HttpReceiver},
        event::CloudEvent,
    },
    metrics::SinkMetrics,
    model::job_change::Uid,
    observe::store::Store,
    result::{lookup, manifest_update},
};

/// Concurrent Jobs per receiver.
const AT_A_TIME: usize = 8;
/// Jobs per round.
const ROUND: usize = 256;
/// A round without any change.
const RESYNC: Duration = Duration::from_secs(30);
/// Changes within this time are handled together.
const GATHER: Duration = Duration::from_millis(100);
/// Longest pause before a rejected event is retried.
const MAX_REJECTED_PAUSE: Duration = Duration::from_secs(600);
/// The same after an error of the apiserver, which may be back at any moment.
const MAX_API_PAUSE: Duration = Duration::from_secs(30);

/// Delivers to all receivers, for ever; only on the leader.
pub async fn run(receivers: Vec<Arc<HttpReceiver>>, client: Client, store: Store, metrics: SinkMetrics) {
    let each = receivers.into_iter().map(|receiver| {
        Box::pin(
            Outbox { receiver, client: client.clone(), store: store.clone(), metrics: metrics.clone() }.run(),
        )
    });
    futures::future::join_all(each).await;
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
    async fn run(self) {
        let sink = self.receiver.name().to_owned();
        let mut changes = self.store.changes();
        let mut backoff = DeliveryBackoff::default();
        let mut unavailable = false;
        let mut retries = RetryTimes::new();
        loop {
            changes.mark_unchanged();
            let mut pending = self.store.jobs_with_pending_events(&sink);
            self.metrics.set_events_pending(&sink, pending.len());
            retries.retain(|uid, _| pending.contains(uid));
            let now = Instant::now();
            pending.retain(|uid| retries.get(uid).is_none_or(|(_, at)| *at <= now));
            let more = pending.len() > ROUND;
            // One event is enough to find out that it is available again.
            pending.truncate(if unavailable { 1 } else { ROUND });
            let some = !pending.is_empty();
            match self.deliver_round(pending, &mut retries).await {
                Ok(()) if some => {
                    if backoff.reset() {
                        tracing::info!(receiver = sink, "the receiver accepts CloudEvents again");
                    }
                    if more || std::mem::take(&mut unavailable) {
                        continue;
                    }
                }
                Ok(()) => {}
                Err(error) => {
                    let pause = backoff.next_pause();
                    unavailable = true;
                    self.metrics.event_failed(&sink);
                    if backoff.is_log_due() {
                        tracing::warn!(receiver = sink, "cannot deliver CloudEvents: {error}; retrying");
                    }
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            let wake = retries
                .values()
                .map(|(_, at)| *at)
                .min()
                .map_or(Instant::now() + RESYNC, |at| at.min(Instant::now() + RESYNC));
            tokio::select! { _ = changes.changed() => {}, () = tokio::time::sleep_until(wake) => {} }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Delivers the events of some Jobs, until the receiver is unavailable.
    async fn deliver_round(&self, pending: Vec<Uid>, retries: &mut RetryTimes) -> Result<(), DeliveryError> {
        let mut deliveries = stream::iter(pending)
            .map(|uid| async move {
                let outcome = self.deliver_job(&uid).await;
                (uid, outcome)
            })
            .buffer_unordered(AT_A_TIME);
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
                    let pause = Duration::from_secs(2_u64.saturating_pow(attempts)).min(longest);
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
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{Method, Request, Response};
    use job_handler_shared::{keys, process::telemetry::Metrics};
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;
    use crate::model::result_ref::result_ref_of;
    use crate::result::seal::Seal;
    use job_handler_shared::result::{metadata::OUTBOX, storage_kind::StorageKind};
    use kube::core::ObjectMeta;
    use std::collections::BTreeMap;

    /// Jobs with pending events.
    const JOBS: usize = 600;
    /// The key of the seal.
    const KEY: &[u8] = &[1; 32];

    /// Unavailable until a moment of the paused clock; records what it accepted.
    struct FlakyReceiver {
        back: Instant,
        received: Mutex<Vec<Value>>,
        attempts: AtomicUsize,
    }

    impl EventReceiver for FlakyReceiver {
        fn name(&self) -> &str {
            "ci"
        }

        async fn deliver(&self, event: &CloudEvent) -> Result<(), DeliveryError> {
            self.attempts.fetch_add(1, Ordering::Relaxed);
            if Instant::now() < self.back {
                return Err(DeliveryError::Unavailable("503".into()));
            }
            self.received.lock().push(event.to_json("/s", &Default::default()));
            Ok(())
        }
    }

    type Maps = Arc<Mutex<BTreeMap<String, Value>>>;

    /// Results in memory, with resourceVersions.
    fn cluster(maps: Maps) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let maps = maps.clone();
            async move {
                let (parts, body) = request.into_parts();
                let sent = body.collect_bytes().await.unwrap_or_default();
                let name = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
                let mut maps = maps.lock();
                let map = maps.get_mut(&name).unwrap();
                if parts.method == Method::PATCH && map["metadata"]["labels"]["refused"] == "true" {
                    let refusal = json!({
                        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                        "message": "a policy of somebody else's allows no change of it",
                    });
                    let answer = Response::builder().status(403);
                    return Ok(answer.body(Body::from(refusal.to_string().into_bytes())).unwrap());
                }
                if parts.method == Method::PATCH {
                    let patch: Value = serde_json::from_slice(&sent).unwrap();
                    assert_eq!(patch["metadata"]["resourceVersion"], map["metadata"]["resourceVersion"]);
                    json_patch::merge(map, &patch);
                    map["metadata"]["resourceVersion"] = "2".into();
                }
                let answer = serde_json::to_vec(map).unwrap();
                Ok::<_, Infallible>(Response::new(Body::from(answer)))
            }
        });
        Client::new(service, "default")
    }

    fn name(n: usize) -> String {
        format!("job-{n}-results")
    }

    fn result(n: usize) -> Value {
        let manifest = json!({
            "schemaVersion": 1,
            "job": {"namespace": "ci", "name": format!("job-{n}"), "uid": format!("u{n}"),
                "created": "2026-01-01T00:00:00Z", "started": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:00:09Z", "durationSeconds": 9, "succeededPods": 1, "failedPods": 0},
            "outcome": "completed", "pods": [], "podsNotListed": 0,
            "completeness": {"complete": true, "lost": []},
            "announcementsPending": [], "cloudEventsPending": {"ci": ["started", "completed"]},
        });
        let mut metadata: ObjectMeta = serde_json::from_value(json!({
            "name": name(n), "namespace": "ci", "resourceVersion": "1",
            "labels": {keys::CREATED: "true", keys::JOB_UID: format!("u{n}")}, "annotations": {OUTBOX: "ci"},
        }))
        .unwrap();
        let seal = Seal::default();
        seal.set_key(KEY);
        seal.put(&mut metadata);
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
            "data": {"result.json": manifest.to_string()},
        })
    }

    /// A sink that has just started and has listed these results.
    fn sink(maps: &Maps, receiver: &Arc<FlakyReceiver>) -> (Store, tokio::task::JoinHandle<()>) {
        let store = Store::default();
        store.seal.set_key(KEY);
        maps.lock().iter().for_each(|(_, map)| observe(&store, map));
        let outbox = Outbox {
            receiver: receiver.clone(),
            client: cluster(maps.clone()),
            store: store.clone(),
            metrics: SinkMetrics::new(&Metrics::default()),
        };
        (store, tokio::spawn(outbox.run()))
    }

    fn observe(store: &Store, map: &Value) {
        let metadata: ObjectMeta = serde_json::from_value(map["metadata"].clone()).unwrap();
        let sealed = store.seal.holds(&metadata);
        let (uid, result) = result_ref_of(StorageKind::ConfigMap, &metadata, sealed).unwrap();
        store.put_result(&uid, result);
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_was_unavailable_for_an_hour_gets_all_events_across_leader_changes() {
        let maps = Maps::default();
        let back = Instant::now() + Duration::from_secs(3600);
        let receiver =
            Arc::new(FlakyReceiver { back, received: Mutex::default(), attempts: AtomicUsize::new(0) });
        let (mut store, mut task) = sink(&maps, &receiver);
        for n in 0..JOBS {
            maps.lock().insert(name(n), result(n));
            observe(&store, &result(n));
            // Twice within the hour a new leader takes over, which knows only what is stored.
            if n % 200 == 199 && n + 1 < JOBS {
                task.abort();
                (store, task) = sink(&maps, &receiver);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        tokio::time::sleep_until(back).await;
        assert!(receiver.received.lock().is_empty());
        let attempts = receiver.attempts.load(Ordering::Relaxed);
        assert!((30..300).contains(&attempts), "attempts are spaced while it is unavailable: {attempts}");
        tokio::time::sleep(Duration::from_secs(120)).await;
        task.abort();

        let received = receiver.received.lock();
        let mut of_job: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in received.iter() {
            of_job.entry(event["subject"].as_str().unwrap()).or_default().push(event["id"].as_str().unwrap());
        }
        for n in 0..JOBS {
            let ids = [format!("u{n}-started"), format!("u{n}-completed")];
            assert_eq!(of_job[&*format!("ci/job-{n}")], ids, "each once, in order");
        }
        assert_eq!(received.len(), 2 * JOBS);
        assert!(store.jobs_with_pending_events("ci").is_empty());
        for map in maps.lock().values() {
            assert_eq!(map["metadata"]["annotations"].get(OUTBOX), None, "nothing is pending");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_cannot_be_recorded_delays_no_other_job() {
        let maps = Maps::default();
        for n in 0..9 {
            let mut map = result(n);
            map["metadata"]["labels"]["refused"] = (n == 0).to_string().into();
            maps.lock().insert(name(n), map);
        }
        let receiver = Arc::new(FlakyReceiver {
            back: Instant::now(),
            received: Mutex::default(),
            attempts: AtomicUsize::new(0),
        });
        let (store, task) = sink(&maps, &receiver);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(store.jobs_with_pending_events("ci"), ["u0"], "it is retried, and delays no other");
        // Later events are delivered at once, too.
        maps.lock().insert(name(9), result(9));
        observe(&store, &result(9));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.jobs_with_pending_events("ci"), ["u0"]);
        let ids: std::collections::BTreeSet<_> =
            receiver.received.lock().iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), 20, "a repeated event has the same id");
        maps.lock().get_mut(&name(0)).unwrap()["metadata"]["labels"]["refused"] = "false".into();
        tokio::time::sleep(MAX_API_PAUSE * 2).await;
        task.abort();
        assert!(store.jobs_with_pending_events("ci").is_empty());
    }
}
