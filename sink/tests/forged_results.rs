//! Objects that look like results and are not the sink's, as tenants could write them while the admission policy was absent:
//! they prove nothing, and nothing follows from them in another namespace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::collections::BTreeSet;

use common::{
    Apiserver,
    build::{UID, cluster, garbage_collector, process},
};
use jiff::Timestamp;
use job_handler_shared::{
    keys,
    result::{
        metadata::{PENDING, SEAL, SHARD},
        storage_kind::StorageKind,
    },
};
use serde_json::{Value, json};

const NAME: &str = "build-results";
const NAME_WITH_UID: &str = "build-results-01234567";

fn delete_after() -> Value {
    json!({"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}})
}

/// A result of the Job as somebody without the key would write it: all is right but the seal.
async fn forged(namespace: &str) -> Value {
    let elsewhere = cluster(b"forged\n");
    process(&elsewhere, json!({"results": {}})).reconcile_job(UID).await.unwrap();
    let mut forged = elsewhere.get("configmaps", "ci", NAME).unwrap();
    let metadata = &mut forged["metadata"];
    metadata["namespace"] = namespace.into();
    metadata["labels"][PENDING] = "pending".into();
    metadata["annotations"][SEAL] = "00".repeat(32).into();
    metadata.as_object_mut().unwrap().remove("uid");
    let text = forged["data"]["result.json"].as_str().unwrap();
    let mut manifest: Value = serde_json::from_str(text).unwrap();
    manifest["announcementsPending"] = json!([keys::REASON_PROCESSING]);
    forged["data"]["result.json"] = manifest.to_string().into();
    forged
}

fn event_reasons(apiserver: &Apiserver, namespace: &str) -> Vec<String> {
    let mut events = apiserver.all("events");
    events.retain(|event| event["metadata"]["namespace"] == namespace);
    let mut reasons: Vec<_> =
        events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect();
    reasons.sort();
    reasons
}

#[tokio::test]
async fn a_job_is_deleted_only_with_a_result_of_its_own() {
    let apiserver = cluster(b"genuine\n");
    let forged = apiserver.put("configmaps", forged("ci").await);
    process(&apiserver, delete_after()).reconcile_job(UID).await.unwrap();
    assert!(apiserver.get("jobs", "ci", "build").is_none());
    let own = apiserver.get("configmaps", "ci", NAME_WITH_UID).unwrap();
    assert!(own["data"]["logs"].as_str().unwrap().contains("genuine"), "{own}");
    assert_eq!(apiserver.get("configmaps", "ci", NAME), Some(forged), "left alone");
    assert_eq!(event_reasons(&apiserver, "ci"), ["JobProcessing", "ResultNameTaken"]);
}

#[tokio::test]
async fn a_result_that_another_namespace_claims_has_no_effect() {
    let apiserver = cluster(b"genuine\n");
    let forged = apiserver.put("configmaps", forged("evil").await);
    let reconciler = process(&apiserver, delete_after());
    let collector = garbage_collector(&apiserver, &reconciler, StorageKind::ConfigMap, None);
    collector.delete_expired(Timestamp::now()).await;
    assert_eq!(apiserver.writes(), 0, "{:#?}", apiserver.calls());
    reconciler.reconcile_job(UID).await.unwrap();
    assert_eq!(apiserver.get("configmaps", "evil", NAME), Some(forged));
    assert_eq!(event_reasons(&apiserver, "evil"), Vec::<String>::new());
    assert_eq!(event_reasons(&apiserver, "ci"), ["JobProcessing"]);
    // Once the Job is gone, its Events are not written again.
    reconciler.store.remove_job(UID, None);
    reconciler.reconcile_job(UID).await.unwrap();
    assert_eq!(event_reasons(&apiserver, "evil"), Vec::<String>::new());
}

#[tokio::test]
async fn shards_of_a_harvest_in_progress_stay_whatever_claims_to_be_its_result() {
    for namespace in ["ci", "evil"] {
        let apiserver = cluster(b"genuine\n");
        apiserver.put("configmaps", forged(namespace).await);
        apiserver.put(
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "build-results-01234567-0", "namespace": "ci",
                "labels": {SHARD: "0", keys::JOB_UID: UID}}}),
        );
        let reconciler = process(&apiserver, json!({"results": {}}));
        let collector = garbage_collector(&apiserver, &reconciler, StorageKind::ConfigMap, None);
        let suspects = collector.delete_orphaned_shards(&BTreeSet::new()).await.unwrap();
        assert!(suspects.is_empty(), "forged in {namespace}: {suspects:?}");
    }
}

/// The key of the seal was lost, or somebody has changed what the seal covers.
#[tokio::test]
async fn a_result_without_a_seal_counts_if_the_sink_recorded_it_on_the_job() {
    let apiserver = cluster(b"genuine\n");
    process(&apiserver, json!({"results": {}})).reconcile_job(UID).await.unwrap();
    apiserver.change("configmaps", "ci", NAME, |map| {
        map["metadata"]["annotations"][SEAL] = "00".repeat(32).into();
    });
    let writes = apiserver.writes();
    process(&apiserver, json!({"results": {}})).reconcile_job(UID).await.unwrap();
    assert_eq!(apiserver.writes(), writes, "not harvested again: {:#?}", apiserver.calls());
    process(&apiserver, delete_after()).reconcile_job(UID).await.unwrap();
    assert!(apiserver.get("jobs", "ci", "build").is_none());
    assert_eq!(apiserver.all("configmaps").len(), 1);
}
