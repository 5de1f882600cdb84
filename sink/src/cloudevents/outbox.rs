//! Delivers CloudEvents: one loop per receiver, so that one that is away holds up neither the others nor a harvest.
//!
//! Where it is kept that something is pending:
//! - *completed*, *failed*: in the manifest of the result, written with it ([`job_handler_shared::result::manifest::Manifest`]), until the
//!   receiver has taken it. An annotation on the result says which receivers are still to be told.
//! - *started*: nowhere; it follows from the Job's state. Who leads remembers which receivers were told of which running
//!   Job, and tells them again (same id) where it does not know. A Job that finishes before takes it along into its
//!   manifest. Only of a Job that is deleted while it runs and the receiver is away, nothing remains to be told.
//! - *refused*: [`crate::cloudevents::refusal_spool`].
//!
//! So each is told at least once across restarts, in the order of the phases of its Job, and nothing is held in memory
//! but what the watches know anyway.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use kube::Client;
use tokio::time::Instant;

use crate::{
    cloudevents::{
        client::{Fault, Patience, Post, Receiver},
        event::Told,
    },
    metrics::SinkMetrics,
    model::job_change::Uid,
    observe::store::Store,
    result::writer,
};

/// Jobs that are told of at a time, per receiver.
const AT_A_TIME: usize = 8;
/// Jobs per round.
const ROUND: usize = 256;
/// Everything is looked at again this often.
const RESYNC: Duration = Duration::from_secs(30);
/// Changes of this long are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// Longest pause before an event that was rejected is tried again.
const LONGEST: Duration = Duration::from_secs(600);
/// The same where the apiserver did not let us read or note: it may be back at any moment.
const LONGEST_UNREAD: Duration = Duration::from_secs(30);

/// Delivers to all receivers for ever; only ever done by the leader.
pub async fn keep(receivers: Vec<Arc<Receiver>>, client: Client, store: Store, metrics: SinkMetrics) {
    let each = receivers.into_iter().map(|receiver| {
        Box::pin(
            Outbox { receiver, client: client.clone(), store: store.clone(), metrics: metrics.clone() }
                .keep(),
        )
    });
    futures::future::join_all(each).await;
}

/// What is to be told to one receiver.
struct Outbox<R> {
    receiver: Arc<R>,
    client: Client,
    store: Store,
    metrics: SinkMetrics,
}

/// Jobs whose events were rejected, or could not be read or noted: how often, and when they are tried again.
type Later = HashMap<Uid, (u32, Instant)>;

impl<R: Post> Outbox<R> {
    async fn keep(self) {
        let sink = self.receiver.name().to_owned();
        let mut changes = self.store.changes();
        let mut patience = Patience::default();
        let mut away = false;
        let mut later = Later::new();
        loop {
            changes.mark_unchanged();
            let mut pending = self.store.jobs_with_pending_events(&sink);
            self.metrics.set_events_pending(&sink, pending.len());
            later.retain(|uid, _| pending.contains(uid));
            let now = Instant::now();
            pending.retain(|uid| later.get(uid).is_none_or(|(_, at)| *at <= now));
            let more = pending.len() > ROUND;
            // While it is away, one is enough to find out that it is back.
            pending.truncate(if away { 1 } else { ROUND });
            let some = !pending.is_empty();
            match self.round(pending, &mut later).await {
                Ok(()) if some => {
                    if patience.well() {
                        tracing::info!(receiver = sink, "CloudEvents: it takes events again");
                    }
                    if more || std::mem::take(&mut away) {
                        continue;
                    }
                }
                Ok(()) => {}
                Err(fault) => {
                    let pause = patience.pause();
                    away = true;
                    self.metrics.event_failed(&sink);
                    if patience.is_worth_a_word() {
                        tracing::warn!(receiver = sink, "CloudEvents wait: {fault}; trying again");
                    }
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            let wake = later
                .values()
                .map(|(_, at)| *at)
                .min()
                .map_or(Instant::now() + RESYNC, |at| at.min(Instant::now() + RESYNC));
            tokio::select! { _ = changes.changed() => {}, () = tokio::time::sleep_until(wake) => {} }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Tells of some Jobs, until the receiver takes no more.
    async fn round(&self, pending: Vec<Uid>, later: &mut Later) -> Result<(), Fault> {
        let mut told = stream::iter(pending)
            .map(|uid| async move {
                let outcome = self.job(&uid).await;
                (uid, outcome)
            })
            .buffer_unordered(AT_A_TIME);
        while let Some((uid, outcome)) = told.next().await {
            match outcome {
                Ok(()) => _ = later.remove(&uid),
                Err(fault @ (Fault::Rejected(_) | Fault::Api(_))) => {
                    let tries = later.get(&uid).map_or(0, |(tries, _)| *tries) + 1;
                    let longest = if matches!(fault, Fault::Api(_)) { LONGEST_UNREAD } else { LONGEST };
                    let pause = Duration::from_secs(2_u64.saturating_pow(tries)).min(longest);
                    self.metrics.event_failed(self.receiver.name());
                    if tries == 1 {
                        let receiver = self.receiver.name();
                        tracing::warn!(
                            receiver,
                            uid,
                            "CloudEvents: {fault}; this Job's wait, the others go on"
                        );
                    }
                    later.insert(uid, (tries, Instant::now() + pause));
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Tells all that is pending of one Job, in order.
    async fn job(&self, uid: &str) -> Result<(), Fault> {
        let sink = self.receiver.name();
        let place =
            self.store.places_of(uid).into_iter().find(|place| place.outbox.iter().any(|n| n == sink));
        let Some(place) = place else { return self.running(uid).await };
        if let Some(found) =
            writer::read_at(&self.client, place.kind, &place.namespace, &place.name, uid).await?
        {
            for phase in found.manifest.cloud_events_pending.get(sink).into_iter().flatten() {
                let told = Told::of_manifest(*phase, &found.manifest, found.kind, &found.name);
                self.post(&told).await?;
            }
            writer::amend(&self.client, &found, |manifest| {
                manifest.cloud_events_pending.remove(sink).is_some()
            })
            .await?;
        }
        // Else labels and annotations alone are no result, or it has been deleted: nothing is left to tell from.
        let mut done = place;
        done.outbox.retain(|name| name != sink);
        self.store.put_result(uid, done);
        Ok(())
    }

    async fn running(&self, uid: &str) -> Result<(), Fault> {
        let sink = self.receiver.name();
        let group = self.store.group_of(uid).map(|(_, group)| group.value);
        let job = self.store.job(uid).filter(|job| job.finished.is_none());
        let Some(told) = job.and_then(|job| Told::started(&job, group.as_deref())) else { return Ok(()) };
        self.post(&told).await?;
        self.store.set_started_delivered(uid, sink);
        Ok(())
    }

    async fn post(&self, told: &Told) -> Result<(), Fault> {
        self.receiver.post(told).await?;
        self.metrics.event_told(self.receiver.name(), told.phase);
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
    use crate::model::result_ref::ResultRef;
    use job_handler_shared::result::metadata::OUTBOX;
    use job_handler_shared::result::metadata::parse_outbox;
    use std::collections::BTreeMap;

    /// Jobs whose results wait to be told.
    const JOBS: usize = 600;

    /// Away until a moment of the paused clock; remembers what it took.
    struct Scripted {
        back: Instant,
        took: Mutex<Vec<Value>>,
        tries: AtomicUsize,
    }

    impl Post for Scripted {
        fn name(&self) -> &str {
            "ci"
        }

        async fn post(&self, told: &Told) -> Result<(), Fault> {
            self.tries.fetch_add(1, Ordering::Relaxed);
            if Instant::now() < self.back {
                return Err(Fault::Away("503".into()));
            }
            self.took.lock().push(told.to_json("/s", &Default::default()));
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
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name(n), "namespace": "ci", "resourceVersion": "1",
                "labels": {keys::CREATED: "true"}, "annotations": {OUTBOX: "ci"}},
            "data": {"result.json": manifest.to_string()},
        })
    }

    /// A sink that has just started: the watch has told it of these results.
    fn sink(maps: &Maps, receiver: &Arc<Scripted>) -> (Store, tokio::task::JoinHandle<()>) {
        let store = Store::default();
        maps.lock().iter().for_each(|(_, map)| tell(&store, map));
        let outbox = Outbox {
            receiver: receiver.clone(),
            client: cluster(maps.clone()),
            store: store.clone(),
            metrics: SinkMetrics::new(&Metrics::default()),
        };
        (store, tokio::spawn(outbox.keep()))
    }

    fn tell(store: &Store, map: &Value) {
        let annotations = serde_json::from_value(map["metadata"]["annotations"].clone()).unwrap_or_default();
        let manifest: Value = serde_json::from_str(map["data"]["result.json"].as_str().unwrap()).unwrap();
        let place = ResultRef {
            namespace: "ci".into(),
            name: map["metadata"]["name"].as_str().unwrap().into(),
            outbox: parse_outbox(Some(&annotations)),
            ..ResultRef::default()
        };
        store.put_result(manifest["job"]["uid"].as_str().unwrap(), place);
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_was_away_for_an_hour_is_told_of_all_results_by_whoever_leads_then() {
        let maps = Maps::default();
        let back = Instant::now() + Duration::from_secs(3600);
        let receiver = Arc::new(Scripted { back, took: Mutex::default(), tries: AtomicUsize::new(0) });
        let (mut store, mut task) = sink(&maps, &receiver);
        for n in 0..JOBS {
            maps.lock().insert(name(n), result(n));
            tell(&store, &result(n));
            // Twice within the hour, another one takes over, which knows what is stored and nothing else.
            if n % 200 == 199 && n + 1 < JOBS {
                task.abort();
                (store, task) = sink(&maps, &receiver);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        tokio::time::sleep_until(back).await;
        assert!(receiver.took.lock().is_empty());
        let tries = receiver.tries.load(Ordering::Relaxed);
        assert!((30..300).contains(&tries), "it is left alone while it is away, and not forgotten: {tries}");
        tokio::time::sleep(Duration::from_secs(120)).await;
        task.abort();

        let took = receiver.took.lock();
        let mut of_job: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in took.iter() {
            of_job.entry(event["subject"].as_str().unwrap()).or_default().push(event["id"].as_str().unwrap());
        }
        for n in 0..JOBS {
            let ids = [format!("u{n}-started"), format!("u{n}-completed")];
            assert_eq!(of_job[&*format!("ci/job-{n}")], ids, "each once, in order");
        }
        assert_eq!(took.len(), 2 * JOBS);
        assert!(store.jobs_with_pending_events("ci").is_empty());
        for map in maps.lock().values() {
            assert_eq!(map["metadata"]["annotations"].get(OUTBOX), None, "nothing is pending any more");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_noted_of_one_job_holds_up_no_other() {
        let maps = Maps::default();
        for n in 0..9 {
            let mut map = result(n);
            map["metadata"]["labels"]["refused"] = (n == 0).to_string().into();
            maps.lock().insert(name(n), map);
        }
        let receiver =
            Arc::new(Scripted { back: Instant::now(), took: Mutex::default(), tries: AtomicUsize::new(0) });
        let (store, task) = sink(&maps, &receiver);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(
            store.jobs_with_pending_events("ci"),
            ["u0"],
            "it is tried again, and is nobody else's trouble"
        );
        // What comes later is told at once, too.
        maps.lock().insert(name(9), result(9));
        tell(&store, &result(9));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.jobs_with_pending_events("ci"), ["u0"]);
        let ids: std::collections::BTreeSet<_> =
            receiver.took.lock().iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), 20, "whatever is told again bears the id that it had");
        maps.lock().get_mut(&name(0)).unwrap()["metadata"]["labels"]["refused"] = "false".into();
        tokio::time::sleep(LONGEST_UNREAD * 2).await;
        task.abort();
        assert!(store.jobs_with_pending_events("ci").is_empty());
    }
}
