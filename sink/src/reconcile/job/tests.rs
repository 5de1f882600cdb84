use std::{io, sync::Arc};

use job_handler_shared::{
    keys,
    testing::apiserver::{Apiserver, Fault},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::test_support::{completed_job, process, set_policy};

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
