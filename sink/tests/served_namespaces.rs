//! With `--namespaces`, retention lists shards in these namespaces only.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::{sync::Arc, time::Duration};

use common::Apiserver;
use http::Method;
use job_handler_shared::{keys, process::telemetry::Metrics};
use job_handler_sink::{
    metrics::SinkMetrics,
    observe::{context::Context, key::Key, store::Store},
    retention::gc::GarbageCollector,
};
use parking_lot::Mutex;

/// The paths of all calls.
type Paths = Arc<Mutex<Vec<String>>>;

fn watched(apiserver: &Apiserver) -> (Context, Paths) {
    let paths = Paths::default();
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
    (context, paths)
}

#[tokio::test]
async fn shards_are_looked_for_in_served_namespaces_only() {
    let apiserver = Apiserver::default();
    let (context, paths) = watched(&apiserver);
    let collector = GarbageCollector {
        client: context.client.clone(),
        store: context.store.clone(),
        metrics: context.metrics.clone(),
        budget: None,
        objects: None,
    };
    collector.delete_orphaned_shards(&Default::default()).await.unwrap();
    let expected = ["cd", "ci"].map(|namespace| format!("/api/v1/namespaces/{namespace}/configmaps"));
    assert_eq!(*paths.lock(), expected);
}
