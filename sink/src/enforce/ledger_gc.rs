//! Deletes the JobLedgers of namespaces that no longer exist.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    kube::error::{ApiError, call},
    ledger::crd::{CLUSTER_LEDGER, JobLedger},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Preconditions},
};

use crate::observe::store::Store;

/// Interval of the search for deleted namespaces.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a namespace must be gone before its ledger is deleted: every admission for it has expired by then, on every
/// clock.
const GRACE: Duration = Duration::from_secs(75);

/// Deletes the ledgers of deleted namespaces, until it is dropped.
pub(crate) async fn run(client: Client, store: Store, own_namespace: Arc<str>) -> Infallible {
    let mut gone: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let names = store.ledgers.names();
        gone.retain(|name, _| names.contains(name) && store.namespace(name).is_none());
        for name in names {
            if name == CLUSTER_LEDGER || store.namespace(&name).is_some() {
                continue;
            }
            let since = *gone.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < GRACE {
                continue;
            }
            match delete(&client, &store, &own_namespace, &name).await {
                Ok(true) => {
                    tracing::info!(namespace = name, "deleted the JobLedger of a deleted namespace");
                }
                Ok(false) => {}
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!("cannot delete the JobLedger of a deleted namespace: {error}; retrying");
                }
            }
        }
    }
}

/// Deletes the observed version of a ledger if a quorum read finds no such namespace.
async fn delete(client: &Client, store: &Store, own: &str, name: &str) -> Result<bool, ApiError> {
    let Some(ledger) = store.ledgers.get(name) else { return Ok(false) };
    let namespaces = Api::<Namespace>::all(client.clone());
    // A list without resourceVersion is a quorum read, and needs no permission beyond those of the watch.
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = call(&format!("list namespace {name}"), namespaces.list_metadata(&only)).await?;
    if !found.items.is_empty() {
        return Ok(false);
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(ledger.uid.clone()),
            resource_version: Some(ledger.version.clone()),
        }),
        ..DeleteParams::default()
    };
    let ledgers = Api::<JobLedger>::namespaced(client.clone(), own);
    call(&format!("delete jobledger {own}/{name}"), ledgers.delete(name, &params)).await.map(|_| true)
}
