//! Changes by users during a harvest: edited policies, forged labels, deleted Jobs. After a change between two steps, the
//! next step is the one that the policies request now.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use common::{
    Apiserver,
    build::{UID, cluster, process, set_policy},
};
use http::Method;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    result::{manifest, storage_kind::StorageKind},
};
use job_handler_sink::{model::result_ref::ResultRef, reconcile::job::JobReconciler};
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

const JOB: &str = "/jobs/build";

fn delete_after() -> Value {
    json!({"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}})
}

fn never() -> Value {
    json!({"results": {}, "cleanup": {"failedPolicy": "Never"}})
}

fn the_job(apiserver: &Apiserver) -> Value {
    apiserver.get("jobs", "ci", "build").unwrap_or_else(|| panic!("deleted: {:#?}", apiserver.calls()))
}

/// Delivers the state of a ConfigMap as the watch does, where the metadata still has its seal.
fn seen(reconciler: &JobReconciler, name: &str) {
    reconciler
        .store
        .put_result(UID, ResultRef { sealed: true, ..ResultRef::at(StorageKind::ConfigMap, "ci", name) });
}

#[tokio::test]
async fn a_policy_changed_to_never_between_any_two_steps_keeps_the_job() {
    // The call before which the policy changes: a read of the capture, or the write of the step.
    for (method, path, step) in [
        (Method::GET, "/log", "capture"),
        (Method::POST, "/configmaps", "commit"),
        (Method::PATCH, JOB, "mark"),
        (Method::POST, "/events", "announce"),
        (Method::PATCH, "/configmaps/build-results", "note"),
    ] {
        let apiserver = cluster(b"hello\n");
        let reconciler = process(&apiserver, delete_after());
        let store = reconciler.store.clone();
        apiserver.before(method, path, move || set_policy(&store, 2, never()));
        reconciler.reconcile_job(UID).await.unwrap();
        let job = the_job(&apiserver);
        // Before the mark, Never also removes the TTL; after it, the TTL is left to users.
        if matches!(step, "capture" | "commit") {
            assert!(job["spec"].get("ttlSecondsAfterFinished").is_none(), "{step}: {job}");
        }
        assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results", "{step}");
        assert_eq!(apiserver.all("events").len(), 1, "{step}");
    }
}

#[tokio::test]
async fn opting_out_during_the_harvest_keeps_the_job_and_its_ttl() {
    let apiserver = cluster(b"hello\n");
    let reconciler = process(&apiserver, delete_after());
    let (server, store) = (apiserver.clone(), reconciler.store.clone());
    apiserver.before(Method::GET, "/log", move || {
        let mut job = server.get("jobs", "ci", "build").unwrap();
        job["metadata"]["labels"] = json!({keys::ENABLED: "false"});
        server.put("jobs", job);
        // The watch has not delivered it.
        let _unseen = store;
    });
    reconciler.reconcile_job(UID).await.unwrap();
    let job = the_job(&apiserver);
    assert!(job["metadata"]["annotations"].get(keys::STATUS).is_none(), "{job}");
    assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 60, "its own TTL is restored");
}

#[tokio::test]
async fn labels_alone_do_not_make_a_result() {
    for name in ["whatever", "build-results", "build-results-01234567"] {
        for policy in [json!({"results": {}}), delete_after()] {
            let apiserver = cluster(b"hello\n");
            apiserver.put(
                "configmaps",
                json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": "ci",
                    "labels": {keys::CREATED: "true", keys::JOB_UID: UID}}}),
            );
            let reconciler = process(&apiserver, policy);
            seen(&reconciler, name);
            reconciler.reconcile_job(UID).await.unwrap();
            let stored = apiserver.all("configmaps").into_iter().find(|map| {
                map["data"]["result.json"].as_str().is_some_and(|manifest| manifest.contains(UID))
            });
            let stored = stored.unwrap_or_else(|| panic!("{name}: no result: {:#?}", apiserver.calls()));
            assert!(stored["data"]["logs"].as_str().unwrap().contains("hello"), "{name}");
            assert!(apiserver.all("events").iter().any(|event| event["reason"] == "JobProcessing"));
            if let Some(job) = apiserver.get("jobs", "ci", "build") {
                assert_eq!(job["metadata"]["annotations"][keys::RESULTS], stored["metadata"]["name"]);
            }
        }
    }
}

#[tokio::test]
async fn a_copy_of_a_result_changes_nothing() {
    for copy in ["zz-backup", "build-results-01234567"] {
        let apiserver = cluster(b"hello\n");
        process(&apiserver, json!({"results": {}})).reconcile_job(UID).await.unwrap();
        let mut map = apiserver.get("configmaps", "ci", "build-results").unwrap();
        map["metadata"]["name"] = copy.into();
        apiserver.put("configmaps", map);
        // The author also extends the Job's TTL.
        let mut job = the_job(&apiserver);
        job["spec"]["ttlSecondsAfterFinished"] = 3600.into();
        apiserver.put("jobs", job);
        let reconciler = process(&apiserver, json!({"results": {}}));
        seen(&reconciler, copy);
        reconciler.reconcile_job(UID).await.unwrap();
        let job = the_job(&apiserver);
        assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results", "{copy}");
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 3600, "{copy}");
    }
}

#[tokio::test]
async fn a_group_is_not_pruned_because_of_labels_alone() {
    let apiserver = cluster(b"hello\n");
    let mut newer = the_job(&apiserver);
    newer["metadata"]["name"] = "build-2".into();
    newer["metadata"]["uid"] = "2".into();
    newer["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z".into();
    newer["metadata"]["labels"] = json!({"app": "x"});
    newer["status"] = json!({});
    let mut older = the_job(&apiserver);
    older["metadata"]["labels"] = json!({"app": "x"});
    apiserver.put("jobs", older);
    apiserver.put("jobs", newer);
    apiserver.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "build-results", "namespace": "ci",
            "labels": {keys::CREATED: "true", keys::JOB_UID: UID}}}),
    );
    let policy = json!({"results": {}, "group": {"type": "Labels", "labelKeys": ["app"]},
        "cleanup": {"keep": {"newest": 1}}});
    let reconciler = process(&apiserver, policy.clone());
    let group = reconciler.store.group_of(UID).unwrap();
    reconciler.reconcile_group(&group).await.unwrap();
    the_job(&apiserver);
    // With a result it also stays if the policy stops pruning while the sink reads the Job that stays.
    reconciler.reconcile_job(UID).await.unwrap();
    let reconciler = process(&apiserver, policy.clone());
    let store = reconciler.store.clone();
    apiserver.before(Method::GET, "/jobs/build-2", move || {
        set_policy(&store, 2, json!({"results": {}, "group": {"type": "Labels", "labelKeys": ["app"]}}));
    });
    let _looks_again = reconciler.reconcile_group(&group).await;
    the_job(&apiserver);
    // Otherwise it is deleted.
    process(&apiserver, policy).reconcile_group(&group).await.unwrap();
    assert!(apiserver.get("jobs", "ci", "build").is_none());
}

#[tokio::test]
async fn a_removed_ttl_is_restored_when_no_policy_requests_the_result() {
    let apiserver = cluster(b"hello\n");
    let reconciler = process(&apiserver, json!({"stamp": {"ttlSecondsAfterFinished": {"max": 50}}}));
    reconciler.reconcile_job(UID).await.unwrap();
    let job = the_job(&apiserver);
    assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 50, "the parked one is 60; clamped");
    assert!(job["metadata"]["annotations"].get(keys::TTL).is_none(), "{job}");
    assert!(apiserver.all("configmaps").is_empty() && apiserver.all("events").is_empty());
    // It is restored only once, so that later changes by users stay.
    let writes = apiserver.writes();
    process(&apiserver, json!({})).reconcile_job(UID).await.unwrap();
    assert_eq!(apiserver.writes(), writes);
}

#[tokio::test]
async fn a_finished_job_deleted_before_its_harvest_leaves_a_result() {
    for pods in [true, false] {
        let apiserver = cluster(b"hello\n");
        let reconciler = process(&apiserver, delete_after());
        let job: Job = serde_json::from_value(the_job(&apiserver)).unwrap();
        apiserver.remove("jobs", "ci", "build");
        if !pods {
            apiserver.remove("pods", "ci", "build-x");
        }
        reconciler.store.remove_job(UID, Some(JobSnapshot::from(&job)));
        reconciler.reconcile_job(UID).await.unwrap();
        let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
        let manifest: Value = serde_json::from_str(result["data"][manifest::KEY].as_str().unwrap()).unwrap();
        assert_eq!(result["data"]["status"], "failed");
        assert_eq!(manifest["completeness"]["complete"], pods, "{manifest}");
        let lost = manifest["completeness"]["lost"].to_string();
        assert_eq!(lost.contains("deleted before its result was stored"), !pods, "{lost}");
        let reasons: Vec<_> = apiserver.all("events").iter().map(|e| e["reason"].clone()).collect();
        assert_eq!(reasons, ["JobProcessing"]);
        assert!(reconciler.store.deleted_jobs().is_empty(), "handled");
    }
}

#[tokio::test]
async fn an_event_reports_a_deleted_jobs_result_that_cannot_be_written() {
    let apiserver = cluster(b"hello\n");
    let reconciler = process(&apiserver, delete_after());
    apiserver.remove("jobs", "ci", "build");
    reconciler.store.remove_job(UID, None);
    apiserver.refuse("configmaps", 403, "exceeded quota: few");
    reconciler.reconcile_job(UID).await.unwrap();
    let events = apiserver.all("events");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["reason"], "ResultLost");
    let note = events[0]["note"].as_str().unwrap();
    assert!(
        note.contains("exceeded quota") && note.contains("deleted") && !note.contains("keeps trying"),
        "{note}"
    );
    assert!(reconciler.store.deleted_jobs().is_empty(), "reported");
}

#[tokio::test]
async fn a_deleted_jobs_result_is_retried_after_a_transient_error() {
    let apiserver = cluster(b"hello\n");
    let reconciler = process(&apiserver, delete_after());
    apiserver.remove("jobs", "ci", "build");
    reconciler.store.remove_job(UID, None);
    apiserver.refuse("configmaps", 500, "etcd is away");
    reconciler.reconcile_job(UID).await.unwrap_err();
    assert_eq!(reconciler.store.deleted_jobs(), [UID]);
    assert!(apiserver.all("events").is_empty());
    apiserver.revive();
    reconciler.reconcile_job(UID).await.unwrap();
    assert!(apiserver.get("configmaps", "ci", "build-results").is_some());
    assert!(reconciler.store.deleted_jobs().is_empty());
}

#[tokio::test]
async fn only_deleted_jobs_with_a_requested_result_are_harvested() {
    let harvested = cluster(b"hello\n");
    process(&harvested, json!({"results": {}})).reconcile_job(UID).await.unwrap();
    let reconciler = process(&harvested, json!({"results": {}}));
    reconciler.store.remove_job(UID, None);
    assert!(reconciler.store.deleted_jobs().is_empty(), "marked: its result was stored");

    let reconciler = process(&cluster(b""), json!({}));
    reconciler.store.remove_job(UID, None);
    assert!(reconciler.store.deleted_jobs().is_empty(), "no policy requests its result");

    // The end of a relist that does not have it any more.
    let reconciler = process(&cluster(b""), json!({"results": {}}));
    let mut changes = reconciler.store.changes();
    changes.mark_unchanged();
    reconciler.store.retain_jobs(&Default::default());
    assert_eq!(reconciler.store.deleted_jobs(), [UID]);
    assert!(changes.has_changed().unwrap());
}
