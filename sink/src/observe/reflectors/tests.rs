use std::time::Duration;

use http::Method;
use job_handler_shared::{
    names,
    process::{admin::Readiness, telemetry::Metrics},
    result::metadata::may_be_result,
    testing::apiserver::Apiserver,
};
use k8s_openapi::ByteString;
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::{metrics::SinkMetrics, observe::store::Store, result::seal::Seal};

#[test]
fn names_of_results() {
    let uid = "0123456789";
    for job in ["a", "a-results", &"x".repeat(253)] {
        assert!(may_be_result(&names::result_name(job), uid), "{job}");
        assert!(may_be_result(&names::result_name_with_uid(job, uid), uid), "{job}");
    }
    for name in ["whatever", "zz-backup", "a-results-backup", "a-results-99999999", "a-results-01234567-0"] {
        assert!(!may_be_result(name, uid), "{name}");
    }
}

const SEAL_KEY: [u8; 32] = [7; 32];

/// As the sink that stored it sealed it.
fn put_result(apiserver: &Apiserver, namespace: &str) {
    let labels = json!({keys::CREATED: "true", keys::JOB_UID: format!("uid-of-{namespace}")});
    let metadata = json!({"name": "build-results", "namespace": namespace, "labels": labels});
    let mut metadata = serde_json::from_value(metadata).unwrap();
    let seal = Seal::default();
    seal.set_key(&SEAL_KEY);
    seal.put(&mut metadata);
    apiserver.put("configmaps", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn results_of_each_served_namespace_have_a_watch_of_their_own() {
    let apiserver = Apiserver::default();
    let key = ByteString(SEAL_KEY.to_vec());
    let metadata = json!({"name": keys::SEAL_SECRET, "namespace": keys::NAMESPACE});
    apiserver.put("secrets", json!({"metadata": metadata, "data": {"key": key}}));
    ["ci", "cd", "prod"].into_iter().for_each(|namespace| put_result(&apiserver, namespace));
    let paths: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = paths.clone();
    let client = apiserver.slow_client(move |_: &Method, path: &str| {
        seen.lock().push(path.to_owned());
        Duration::ZERO
    });
    let store = Store::default();
    store.served.restrict(["ci".to_owned(), "cd".to_owned()]);
    let context = Context {
        client,
        queue: Key::queue(&store),
        store,
        namespace: keys::NAMESPACE.into(),
        resync: Arc::default(),
        metrics: SinkMetrics::new(&Metrics::default()),
    };
    let readiness = Readiness::default();
    for scope in context.store.served.scopes() {
        let ready = readiness.register(scope.name_of("results"));
        tokio::spawn(results(context.clone(), scope, ready));
    }
    assert_eq!(readiness.not_ready(), ["results in cd: starting", "results in ci: starting"]);
    let known = |namespace: &str| !context.store.results_of_uid(&format!("uid-of-{namespace}")).is_empty();
    wait("both are known", || known("ci") && known("cd") && readiness.not_ready().is_empty()).await;
    assert!(!known("prod"));
    // A list of one namespace does not remove the results of another.
    apiserver.remove("configmaps", "ci", "build-results");
    wait("it is gone", || !known("ci")).await;
    apiserver.forget("configmaps");
    put_result(&apiserver, "ci");
    wait("it is back", || known("ci")).await;
    assert!(known("cd"));
    let outside = |path: &String| path == "/api/v1/configmaps" || path.contains("/prod/");
    assert!(!paths.lock().iter().any(outside), "{:?}", paths.lock());
}

#[tokio::test]
async fn jobs_and_cluster_policies_of_other_namespaces_are_ignored() {
    let apiserver = Apiserver::default();
    let store = Store::default();
    store.served.restrict(["ci".to_owned()]);
    let context = Context {
        client: apiserver.client(),
        queue: Key::queue(&store),
        store,
        namespace: keys::NAMESPACE.into(),
        resync: Arc::default(),
        metrics: SinkMetrics::new(&Metrics::default()),
    };
    for (namespace, excluded) in [("ci", false), ("cd", true), ("kube-system", true), (keys::NAMESPACE, true)]
    {
        assert_eq!(context.is_excluded(namespace), excluded, "{namespace}");
    }
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": "p"}, "spec": {},
    });
    let policy: ClusterJobPolicy = serde_json::from_value(policy).unwrap();
    let read = read_cluster_policy(&context, &policy).unwrap();
    let labels = |name: &str| Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    assert!(read.selects_namespace("ci", &labels("ci")) && !read.selects_namespace("cd", &labels("cd")));
    assert_eq!(policy.spec.namespace_selector, None, "the policy itself is as it was");
}
