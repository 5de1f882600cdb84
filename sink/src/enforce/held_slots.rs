//! Frees the slots that the ledgers hold for Jobs that no longer count: of a deleted Job once its last pod has ended, of a
//! relabelled one once it has finished or is suspended or deleted.
//!
//! The ledger is read first, then the Jobs, then the pods, and an entry is removed only from the version that was read. The
//! webhook writes an entry before the Job goes, with the version of the Job. So if the Job was changed and its pods run on
//! after all, the ledger has another version.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    kube::error::{ApiError, call},
    ledger::crd::{HELD, HeldSlot, JobLedger},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use crate::{
    PROGRAM,
    jobs::patch,
    model::job_change::Uid,
    observe::{ledger_index::Ledger, store::Store},
};

/// How often the pods are listed, while slots are held.
const INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Uids in the selector of a list, which is a part of its URL.
const MAX_SELECTED: usize = 100;

/// Frees slots until it is dropped.
pub(crate) async fn run(client: Client, store: Store, own_namespace: Arc<str>) -> Infallible {
    let ledgers = Api::<JobLedger>::namespaced(client.clone(), &own_namespace);
    loop {
        let mut pause = INTERVAL;
        for name in store.ledgers.names() {
            let Some(ledger) = store.ledgers.get(&name) else { continue };
            match free_ended(&client, &store, &ledgers, &name, &ledger).await {
                Ok(0) => {}
                Ok(freed) => tracing::info!(ledger = name, freed, "freed slots that were held for pods"),
                // Deleted, or written meanwhile: the next round reads it.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(
                        ledger = name,
                        "cannot free slots that are held for pods: {error}; retrying"
                    );
                    pause = RETRY_PAUSE;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Removes the entries of a ledger that hold slots for nothing; returns their number.
async fn free_ended(
    client: &Client,
    store: &Store,
    ledgers: &Api<JobLedger>,
    name: &str,
    ledger: &Ledger,
) -> Result<usize, ApiError> {
    let Ok(contents) = &ledger.book else { return Ok(0) };
    let mut gone: BTreeMap<&str, Vec<&Uid>> = BTreeMap::new();
    let mut ended: BTreeSet<&Uid> = BTreeSet::new();
    for (uid, slot) in &contents.held {
        let job = slot_job(uid, slot);
        if store.job(uid).is_some_and(|known| known.is_active()) {
            continue;
        }
        match patch::get_current(client, &job).await? {
            Some(now) if now.is_active() => {}
            Some(_) => _ = ended.insert(uid),
            None => {
                let namespace = slot.name.split_once('/').map_or("", |(namespace, _)| namespace);
                gone.entry(namespace).or_default().push(uid);
            }
        }
    }
    for (namespace, uids) in gone {
        for uids in uids.chunks(MAX_SELECTED) {
            let running = uids_with_pods(client, namespace, uids).await?;
            ended.extend(uids.iter().filter(|uid| !running.contains(**uid)));
        }
    }
    if ended.is_empty() {
        return Ok(0);
    }
    let freed = ended.len();
    let entries: Map<String, Value> = ended.into_iter().map(|uid| (uid.clone(), Value::Null)).collect();
    let patch = Patch::Merge(json!({
        "metadata": {"uid": ledger.uid, "resourceVersion": ledger.version},
        "spec": {HELD: entries},
    }));
    let params = PatchParams { field_manager: Some(PROGRAM.to_owned()), ..PatchParams::default() };
    let written = call(&format!("write jobledger {name}"), ledgers.patch(name, &params, &patch)).await?;
    store.ledgers.put(&written);
    Ok(freed)
}

/// What identifies the Job of an entry.
fn slot_job(uid: &str, slot: &HeldSlot) -> JobSnapshot {
    let (namespace, name) = slot.name.split_once('/').unwrap_or(("", &slot.name));
    JobSnapshot {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..JobSnapshot::default()
    }
}

/// Which of these Jobs have pods that have not ended. Without a resourceVersion the list is consistent.
async fn uids_with_pods(client: &Client, namespace: &str, uids: &[&Uid]) -> Result<BTreeSet<Uid>, ApiError> {
    let uids: Vec<&str> = uids.iter().map(|uid| uid.as_str()).collect();
    let params = ListParams::default()
        .labels(&format!("{} in ({})", keys::POD_JOB_UID, uids.join(",")))
        .fields("status.phase!=Succeeded,status.phase!=Failed");
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let found = call(&format!("list pods in {namespace}"), pods.list_metadata(&params)).await?;
    Ok(found.items.iter().filter_map(|pod| pod.labels().get(keys::POD_JOB_UID).cloned()).collect())
}

#[cfg(test)]
mod tests {
    use http::Method;
    use job_handler_shared::testing::apiserver::Apiserver;

    use super::*;

    /// An apiserver whose ledger holds a slot for Job `ci/a` of uid `u`, and what the sink knows of it.
    fn with_held_slot() -> (Apiserver, Store) {
        let apiserver = Apiserver::default();
        let held =
            json!({"u": {"name": "ci/a", "scopes": ["p/few"], "from": 3, "since": "2026-01-01T00:00:00Z"}});
        apiserver.put(
            "jobledgers",
            json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger", "spec": {"format": 1, "held": held},
                "metadata": {"name": "ci", "namespace": "system", "uid": "l"}}),
        );
        let store = Store::default();
        store.ledgers.put(&ledger(&apiserver));
        (apiserver, store)
    }

    fn ledger(apiserver: &Apiserver) -> JobLedger {
        serde_json::from_value(apiserver.get("jobledgers", "system", "ci").unwrap()).unwrap()
    }

    async fn free(apiserver: &Apiserver, store: &Store) -> Result<usize, ApiError> {
        let ledgers = Api::<JobLedger>::namespaced(apiserver.client(), "system");
        let known = store.ledgers.get("ci").unwrap();
        free_ended(&apiserver.client(), store, &ledgers, "ci", &known).await
    }

    fn put_job(apiserver: &Apiserver, uid: &str, ended: bool) {
        let complete = json!([{"type": "Complete", "status": "True"}]);
        apiserver.put(
            "jobs",
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a", "namespace": "ci", "uid": uid},
                "spec": {}, "status": if ended { json!({"conditions": complete}) } else { json!({}) }}),
        );
    }

    fn put_pod(apiserver: &Apiserver, uid: &str) {
        let metadata = json!({"name": uid, "namespace": "ci", "labels": {keys::POD_JOB_UID: uid}});
        apiserver.put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}));
    }

    #[tokio::test]
    async fn a_slot_is_held_until_the_last_pod_of_the_deleted_job_ends() {
        let (apiserver, store) = with_held_slot();
        put_pod(&apiserver, "u");
        put_pod(&apiserver, "other");
        // The Job of the same name is another one.
        put_job(&apiserver, "v", false);
        assert_eq!(free(&apiserver, &store).await.unwrap(), 0);
        apiserver.remove("pods", "ci", "u");
        assert_eq!(free(&apiserver, &store).await.unwrap(), 1);
        assert!(ledger(&apiserver).spec.contents().unwrap().holds_nothing());
        assert_eq!(free(&apiserver, &store).await.unwrap(), 0, "the sink knows its own write");
    }

    #[tokio::test]
    async fn a_slot_of_an_existing_job_is_held_until_it_ends() {
        let (apiserver, store) = with_held_slot();
        put_job(&apiserver, "u", false);
        assert_eq!(free(&apiserver, &store).await.unwrap(), 0);
        put_job(&apiserver, "u", true);
        put_pod(&apiserver, "u");
        assert_eq!(free(&apiserver, &store).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn nothing_is_freed_in_a_ledger_that_was_written_meanwhile() {
        let (apiserver, store) = with_held_slot();
        let webhook = apiserver.clone();
        let write =
            move || webhook.change("jobledgers", "system", "ci", |ledger| ledger["spec"]["later"] = json!(1));
        apiserver.before(Method::PATCH, "jobledgers", write);
        assert!(free(&apiserver, &store).await.unwrap_err().is_conflict());
        assert!(!ledger(&apiserver).spec.contents().unwrap().holds_nothing());
    }
}
