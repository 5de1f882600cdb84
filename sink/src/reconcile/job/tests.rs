use std::{io, sync::Arc};

use jiff::SignedDuration;
use job_handler_shared::{
    keys,
    testing::apiserver::{Apiserver, Fault},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{
    harvest::tuning::{LONGEST_HARVEST_PAUSE, MIN_HARVESTS},
    test_support::{completed_job, process, set_policy},
};

const MAPS: &str = "/api/v1/namespaces/ci/configmaps";

/// A finished Job with one pod.
fn put_job(apiserver: &Apiserver, name: &str, uid: &str) {
    let owner =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true}]);
    apiserver.put("jobs", completed_job("ci", name, uid));
    apiserver.put(
        "pods",
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{name}-x"), "namespace": "ci", "ownerReferences": owner,
                "labels": {"batch.kubernetes.io/controller-uid": uid}},
            "spec": {"containers": [{"name": "main", "image": "busybox"}]},
            "status": {"phase": "Succeeded", "containerStatuses": [{"name": "main", "image": "busybox",
                "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]},
        }),
    );
    apiserver.put_log(&format!("{name}-x"), "main", b"hello\n");
}

fn after_harvest() -> Value {
    json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}})
}

/// A Job that finished so long ago, whose node answers this many calls for its log with this code.
fn put_job_with_failing_log(apiserver: &Apiserver, hours: i64, answers: usize, code: u16) {
    put_job(apiserver, "build", "u");
    let at = Timestamp::now() - SignedDuration::from_hours(hours);
    apiserver.change("jobs", "ci", "build", |job| {
        let at = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        job["status"]["conditions"][0]["lastTransitionTime"] = at.into();
    });
    (0..answers).for_each(|_| apiserver.refuse_once(http::Method::GET, "/pods/build-x/log", code));
}

/// Harvests and checks that the Job is kept and nothing is stored, then waits until the next harvest is due.
async fn harvest_in_vain(apiserver: &Apiserver, reconciler: &JobReconciler) {
    reconciler.reconcile_job("u").await.unwrap();
    assert!(reconciler.log_retries.is_waiting("u"));
    let calls = apiserver.calls();
    // Whoever puts it into the queue meanwhile.
    reconciler.reconcile_job("u").await.unwrap();
    assert_eq!(apiserver.calls(), calls);
    let job = apiserver.get("jobs", "ci", "build").expect("the Job is kept");
    assert_eq!(job["metadata"].get("annotations"), None, "it is not marked");
    assert!(apiserver.all("configmaps").is_empty(), "{calls:?}");
    tokio::time::advance(LONGEST_HARVEST_PAUSE).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_is_kept_while_its_log_cannot_be_read() {
    let apiserver = Apiserver::default();
    // Two harvests with three attempts each.
    put_job_with_failing_log(&apiserver, 0, 6, 500);
    let reconciler = process(&apiserver, after_harvest());
    harvest_in_vain(&apiserver, &reconciler).await;
    assert!(apiserver.all("events").is_empty(), "it may be a moment's failure");
    harvest_in_vain(&apiserver, &reconciler).await;
    let events = apiserver.all("events");
    assert_eq!((events.len(), &events[0]["reason"]), (1, &json!(keys::REASON_DELAYED)));
    assert!(events[0]["note"].as_str().unwrap().contains("log of build-x/main"), "{}", events[0]);
    reconciler.reconcile_job("u").await.unwrap();
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    assert!(result["data"]["logs"].as_str().unwrap().contains("hello"), "{result}");
    assert!(apiserver.get("jobs", "ci", "build").is_none(), "it is deleted after its harvest");
}

#[tokio::test(start_paused = true)]
async fn a_log_counts_as_lost_after_the_harvest_deadline() {
    let apiserver = Apiserver::default();
    put_job_with_failing_log(&apiserver, 8 * 24, 9, 503);
    let reconciler = process(&apiserver, after_harvest());
    for _ in 1..MIN_HARVESTS {
        harvest_in_vain(&apiserver, &reconciler).await;
    }
    reconciler.reconcile_job("u").await.unwrap();
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    assert!(result["data"]["logs"].as_str().unwrap().contains("[lost: "), "{result}");
    assert!(apiserver.get("jobs", "ci", "build").is_none());
}

/// A container runtime that restarts makes the kubelet say the same.
#[tokio::test(start_paused = true)]
async fn a_removed_container_is_believed_when_it_is_still_removed_later() {
    for (answers, text) in [(2, "hello"), (3, "[lost: ")] {
        let apiserver = Apiserver::default();
        put_job_with_failing_log(&apiserver, 0, answers, 400);
        let reconciler = process(&apiserver, after_harvest());
        for _ in 1..MIN_HARVESTS {
            harvest_in_vain(&apiserver, &reconciler).await;
        }
        reconciler.reconcile_job("u").await.unwrap();
        let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
        assert!(result["data"]["logs"].as_str().unwrap().contains(text), "{result}");
        let events = apiserver.all("events");
        assert!(events.iter().all(|event| event["reason"] != keys::REASON_DELAYED), "{events:?}");
    }
}

#[tokio::test]
async fn a_log_of_a_deleted_pod_delays_nothing() {
    let apiserver = Apiserver::default();
    put_job_with_failing_log(&apiserver, 0, 1, 404);
    process(&apiserver, after_harvest()).reconcile_job("u").await.unwrap();
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    assert!(result["data"]["logs"].as_str().unwrap().contains("[lost: "), "{result}");
    assert!(apiserver.get("jobs", "ci", "build").is_none());
}

#[tokio::test]
async fn the_steps_are_harvest_mark_announce_delete() {
    let apiserver = Apiserver::default();
    put_job(&apiserver, "build", "u");
    process(&apiserver, after_harvest()).reconcile_job("u").await.unwrap();
    assert_eq!(
        apiserver.calls(),
        [
            format!("POST {MAPS} 201"),
            "PATCH /apis/batch/v1/namespaces/ci/jobs/build 200".to_owned(),
            "POST /apis/events.k8s.io/v1/namespaces/ci/events 201".to_owned(),
            format!("PATCH {MAPS}/build-results 200"),
            "DELETE /apis/batch/v1/namespaces/ci/jobs/build 200".to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_failed_step_is_the_first_of_the_retry() {
    let apiserver = Apiserver::default();
    put_job(&apiserver, "build", "u");
    let reconciler = process(&apiserver, json!({"results": {}}));
    // 0: the result, 1: the mark.
    apiserver.fault(1, Fault::Code(500));
    reconciler.reconcile_job("u").await.unwrap_err();
    reconciler.reconcile_job("u").await.unwrap();
    let results = apiserver.calls().iter().filter(|call| call.starts_with(&format!("POST {MAPS}"))).count();
    assert_eq!(results, 1, "{:#?}", apiserver.calls());
    let job = apiserver.get("jobs", "ci", "build").unwrap();
    assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results");
}

#[tokio::test]
async fn a_result_that_was_deleted_before_the_mark_is_stored_again() {
    let apiserver = Apiserver::default();
    put_job(&apiserver, "build", "u");
    let reconciler = process(&apiserver, json!({"results": {}}));
    apiserver.fault(1, Fault::Code(500));
    reconciler.reconcile_job("u").await.unwrap_err();
    apiserver.remove("configmaps", "ci", "build-results");
    reconciler.reconcile_job("u").await.unwrap();
    assert!(apiserver.get("configmaps", "ci", "build-results").is_some());
    let reference = &reconciler.store.results_of_uid("u")[0];
    assert_eq!((reference.name.as_str(), reference.pending), ("build-results", false));
}

#[tokio::test]
async fn a_job_that_keeps_changing_is_put_back_into_the_queue() {
    let apiserver = Apiserver::default();
    put_job(&apiserver, "build", "u");
    let reconciler = process(&apiserver, json!({"results": {}}));
    // Someone else annotates the Job before each mark.
    for n in 0..MAX_STEPS {
        let other = apiserver.clone();
        apiserver.before(http::Method::PATCH, "/apis/batch/v1/namespaces/ci/jobs/build", move || {
            other.change("jobs", "ci", "build", |job| {
                job["metadata"]["annotations"]["n"] = n.to_string().into();
            });
        });
    }
    let error = reconciler.reconcile_job("u").await.unwrap_err();
    assert!(matches!(error, JobReconcileError::Changed(_)), "{error}");
}

#[tokio::test]
async fn a_policy_that_is_removed_before_the_delete_keeps_the_job() {
    let apiserver = Apiserver::default();
    put_job(&apiserver, "build", "u");
    let reconciler = process(&apiserver, after_harvest());
    let store = reconciler.store.clone();
    apiserver.before(http::Method::POST, "/apis/events.k8s.io/v1/namespaces/ci/events", move || {
        set_policy(&store, 2, json!({"results": {}}));
    });
    reconciler.reconcile_job("u").await.unwrap();
    assert!(apiserver.get("jobs", "ci", "build").is_some());
}

#[derive(Clone, Default)]
struct LogLines(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn log_lines_of_concurrent_reconciles_name_their_job_and_step() {
    const JOBS: usize = 24;
    let log = LogLines::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    // With one dispatcher only, tracing asks the thread that first reaches a callsite, which may be another test's.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let apiserver = Apiserver::default();
    (0..JOBS).for_each(|n| put_job(&apiserver, &format!("build-{n}"), &format!("u{n}")));
    let reconciler = process(&apiserver, json!({"results": {}}));
    crate::reconcile::resync::enqueue_all(&reconciler.store, &reconciler.queue);
    let is_marked = |job: &Value| job["metadata"]["annotations"].get(keys::RESULTS).is_some();
    let done = async {
        while !apiserver.all("jobs").iter().all(is_marked) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! { never = reconciler.clone().run() => match never {}, () = done => {} }
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut stored: Vec<String> = lines
        .filter(|line| line["fields"]["message"] == "stored the result")
        .map(|line| {
            let spans = &line["spans"];
            assert_eq!(spans[0]["namespace"], "ci", "{line}");
            assert_eq!(spans[1]["step"], "harvest", "{line}");
            assert_eq!(line["fields"]["job"], format!("ci/{}", spans[0]["job"].as_str().unwrap()));
            spans[0]["uid"].as_str().unwrap().to_owned()
        })
        .collect();
    stored.sort();
    let mut expected: Vec<String> = (0..JOBS).map(|n| format!("u{n}")).collect();
    expected.sort();
    assert_eq!(stored, expected);
}
