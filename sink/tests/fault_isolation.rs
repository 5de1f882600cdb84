//! Failures in one namespace, or of some logs of a node, do not affect others: against an in-memory apiserver, on a
//! clock that advances only while all tasks wait.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::time::Duration;

use common::{
    Apiserver,
    build::{completed_job, policy_entry, reconciler, store},
};
use http::Method;
use job_handler_shared::{job::snapshot::JobSnapshot, keys, testing::policies::job_policy};
use job_handler_sink::{observe::key::Key, reconcile::job::JobReconciler};
use k8s_openapi::api::batch::v1::Job;
use kube::Client;
use serde_json::json;
use tokio::time::Instant;

/// Jobs that fail or hang: more than there are worker permits.
const TROUBLED: usize = 60;
/// Healthy Jobs, which finish after them.
const HEALTHY: usize = 30;
/// Longer than any timeout.
const NEVER: Duration = Duration::from_secs(1_000_000);
/// Much less than the timeout of one call (10 s) and its retries.
const SOON: Duration = Duration::from_secs(5);

struct TestCluster {
    apiserver: Apiserver,
    reconciler: JobReconciler,
}

impl TestCluster {
    fn new(apiserver: &Apiserver, client: &Client) -> Self {
        let store = store();
        for namespace in ["ill", "well"] {
            store.put_namespace(namespace, Default::default());
            let metadata = json!({"name": "p", "namespace": namespace, "uid": namespace});
            store.put_policy(policy_entry(1, job_policy(metadata, json!({"results": {}}))));
        }
        let reconciler = reconciler(client.clone(), store);
        tokio::spawn(reconciler.clone().run());
        Self { apiserver: apiserver.clone(), reconciler }
    }

    /// Finishes Jobs, each with a pod on the only node.
    fn finish(&self, namespace: &str, number: usize) {
        for n in 0..number {
            let (name, uid) = (format!("{namespace}-{n}"), format!("{namespace}-{n:08}"));
            self.apiserver.put("jobs", completed_job(namespace, &name, &uid));
            self.apiserver.put("pods", json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "ownerReferences": [
                    {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true}]},
                "spec": {"nodeName": "node-0", "containers": [{"name": "main", "image": "busybox"}]},
                "status": {"phase": "Succeeded", "containerStatuses": [{"name": "main", "image": "busybox", "imageID": "",
                    "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]},
            }));
            self.apiserver.put_log(&name, "main", b"here I am\n");
            let job: Job =
                serde_json::from_value(self.apiserver.get("jobs", namespace, &name).unwrap()).unwrap();
            self.reconciler.store.put_job(JobSnapshot::from(&job));
            self.reconciler.queue.add(Key::Job(uid));
        }
    }

    fn results(&self, namespace: &str) -> Vec<serde_json::Value> {
        let mut all = self.apiserver.all("configmaps");
        all.retain(|map| {
            map["metadata"]["namespace"] == namespace && map["metadata"]["labels"][keys::CREATED] == "true"
        });
        all
    }

    /// Time until this number of results is stored.
    async fn stored(&self, namespace: &str, number: usize) -> Duration {
        let since = Instant::now();
        while self.results(namespace).len() < number {
            assert!(since.elapsed() < Duration::from_secs(3_600), "{:?}", self.results(namespace).len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        since.elapsed()
    }

    /// Creations attempted in a namespace so far.
    fn asked(&self, namespace: &str) -> usize {
        let path = format!("POST /api/v1/namespaces/{namespace}/configmaps ");
        self.apiserver.calls().iter().filter(|call| call.starts_with(&path)).count()
    }
}

fn manifest(result: &serde_json::Value) -> serde_json::Value {
    serde_json::from_str(result["data"]["result.json"].as_str().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn logs_that_hang_do_not_delay_others_on_the_same_node() {
    let apiserver = Apiserver::default();
    let hang = |_: &Method, path: &str| {
        if path.contains("/pods/ill-") && path.ends_with("/log") { NEVER } else { Duration::ZERO }
    };
    let cluster = TestCluster::new(&apiserver, &apiserver.slow_client(hang));
    cluster.finish("ill", TROUBLED);
    cluster.finish("well", HEALTHY);
    let took = cluster.stored("well", HEALTHY).await;
    assert!(took < SOON, "{took:?}");
    assert!(cluster.results("ill").len() < TROUBLED, "their logs did not hang: this shows nothing");
    for result in cluster.results("well") {
        assert!(result["data"]["logs"].as_str().unwrap().contains("here I am"));
    }
    // Their results are stored in the end, and say what is missing.
    cluster.stored("ill", TROUBLED).await;
    for result in cluster.results("ill") {
        let manifest = manifest(&result);
        assert_eq!(manifest["completeness"]["complete"], false, "{manifest}");
        assert!(manifest["completeness"]["lost"].to_string().contains("node"), "{manifest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_log_is_read_completely() {
    let apiserver = Apiserver::default();
    let late = |_: &Method, path: &str| {
        if path.ends_with("/log") { Duration::from_secs(4) } else { Duration::ZERO }
    };
    let cluster = TestCluster::new(&apiserver, &apiserver.slow_client(late));
    cluster.finish("ill", 9);
    cluster.stored("ill", 9).await;
    for result in cluster.results("ill") {
        assert!(result["data"]["logs"].as_str().unwrap().contains("here I am"), "{result}");
        let manifest = manifest(&result);
        assert_eq!(manifest["completeness"]["complete"], true, "{manifest}");
    }
}

#[tokio::test(start_paused = true)]
async fn writes_that_hang_in_one_namespace_do_not_delay_another() {
    let apiserver = Apiserver::default();
    let hang = |method: &Method, path: &str| {
        if *method != Method::GET && path.contains("/ill/configmaps") { NEVER } else { Duration::ZERO }
    };
    let cluster = TestCluster::new(&apiserver, &apiserver.slow_client(hang));
    cluster.finish("ill", TROUBLED);
    for round in 0..4 {
        // These come at any time.
        tokio::time::sleep(Duration::from_secs(round * 7)).await;
        cluster.finish("well", HEALTHY * (1 + usize::try_from(round).unwrap()));
        let took = cluster.stored("well", HEALTHY * (1 + usize::try_from(round).unwrap())).await;
        assert!(took < SOON, "round {round}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_rejects_writes_gets_few_until_one_succeeds() {
    let apiserver = Apiserver::default();
    let cluster = TestCluster::new(&apiserver, &apiserver.client());
    apiserver.refuse("ill/configmaps", 403, "configmaps \"x\" is forbidden: exceeded quota: few");
    cluster.finish("ill", 300);
    cluster.finish("well", HEALTHY);
    let took = cluster.stored("well", HEALTHY).await;
    assert!(took < SOON, "{took:?}");
    tokio::time::sleep(Duration::from_secs(120)).await;
    // Without throttling, each Job would have tried 20 times by then, with its logs and without.
    assert!((50..1_000).contains(&cluster.asked("ill")), "{}", cluster.asked("ill"));
    apiserver.revive();
    cluster.stored("ill", 300).await;
    assert!(cluster.results("ill").iter().all(|result| result["data"]["logs"].is_string()));
}
