use std::collections::BTreeMap;

use http::{Method, Request, Response};
use job_handler_shared::{
    keys,
    process::telemetry::Metrics,
    result::{
        metadata::{OUTBOX, SEAL},
        storage_kind::StorageKind,
    },
};
use kube::{client::Body, core::ObjectMeta};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{
    cloudevents::flaky_receiver::FlakyReceiver,
    model::result_ref::{ResultRef, result_ref_of},
    result::seal::Seal,
};

/// Jobs with pending events.
const JOBS: usize = 600;
/// The key of the seal.
const KEY: &[u8] = &[1; 32];

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
fn sink(maps: &Maps, receiver: &Arc<FlakyReceiver>) -> (Store, tokio::task::JoinHandle<Infallible>) {
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
    let receiver = FlakyReceiver::available_from(back);
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
    assert!(receiver.received().is_empty());
    let attempts = receiver.attempts();
    assert!((30..300).contains(&attempts), "attempts are spaced while it is unavailable: {attempts}");
    tokio::time::sleep(Duration::from_secs(120)).await;
    task.abort();

    let received = receiver.received();
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
    let receiver = FlakyReceiver::available_from(Instant::now());
    let (store, task) = sink(&maps, &receiver);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.jobs_with_pending_events("ci"), ["u0"], "it is retried, and delays no other");
    // Later events are delivered at once, too.
    maps.lock().insert(name(9), result(9));
    observe(&store, &result(9));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.jobs_with_pending_events("ci"), ["u0"]);
    let ids: std::collections::BTreeSet<_> =
        receiver.received().iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 20, "a repeated event has the same id");
    maps.lock().get_mut(&name(0)).unwrap()["metadata"]["labels"]["refused"] = "false".into();
    tokio::time::sleep(MAX_API_PAUSE * 2).await;
    task.abort();
    assert!(store.jobs_with_pending_events("ci").is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_delivered_for_a_result_without_the_seal() {
    let maps = Maps::default();
    let mut forged = result(0);
    forged["metadata"]["annotations"][SEAL] = "00".repeat(32).into();
    maps.lock().insert(name(0), forged);
    maps.lock().insert(name(1), result(1));
    let receiver = FlakyReceiver::available_from(Instant::now());
    let (store, task) = sink(&maps, &receiver);
    // Somebody else replaced the object after the watch had seen a genuine one.
    let replaced = ResultRef {
        sealed: true,
        outbox: vec!["ci".into()],
        ..ResultRef::at(StorageKind::ConfigMap, "ci", &name(0))
    };
    store.put_result("u0", replaced);
    tokio::time::sleep(Duration::from_secs(60)).await;
    task.abort();
    let received = receiver.received();
    let ids: Vec<&str> = received.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["u1-started", "u1-completed"]);
    assert!(store.jobs_with_pending_events("ci").is_empty(), "and it is not tried again");
}
