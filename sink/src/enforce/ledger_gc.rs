//! Deletes the JobLedgers of namespaces that no longer exist.

use std::{
    collections::HashMap,
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

/// How often gone namespaces are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// A namespace is gone for so long before its ledger goes: whatever was granted for it has run out by then, on every
/// clock.
const GONE: Duration = Duration::from_secs(75);

/// Deletes the ledgers of namespaces that are gone, for ever.
pub async fn sweep(client: Client, store: Store, own_namespace: Arc<str>) {
    let mut gone: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(SWEEP).await;
        let names = store.ledgers.names();
        gone.retain(|name, _| names.contains(name) && store.namespace(name).is_none());
        for name in names {
            if name == CLUSTER_LEDGER || store.namespace(&name).is_some() {
                continue;
            }
            let since = *gone.entry(name.clone()).or_insert_with(Instant::now);
            if since.elapsed() < GONE {
                continue;
            }
            match remove(&client, &store, &own_namespace, &name).await {
                Ok(true) => {
                    tracing::info!(namespace = name, "deleted the JobLedger of a namespace that is gone");
                }
                Ok(false) => {}
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => tracing::warn!("the JobLedger of a gone namespace: {error}; trying again"),
            }
        }
    }
}

/// Deletes the very version of a ledger that was looked at, where a quorum read shows no such namespace.
pub(crate) async fn remove(client: &Client, store: &Store, own: &str, name: &str) -> Result<bool, ApiError> {
    let Some(ledger) = store.ledgers.get(name) else { return Ok(false) };
    let namespaces = Api::<Namespace>::all(client.clone());
    // A list without resourceVersion is a quorum read, and needs no right that watching does not.
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = call(&format!("look for namespace {name}"), namespaces.list_metadata(&only)).await?;
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
