//! Results in Secrets, against an in-memory apiserver: after a crash at any write, the next process stores one complete
//! result in Secrets only; without the rights, nothing that a container wrote is stored or announced; and results of runs
//! of one Job name can be of different kinds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use common::{
    Apiserver, Fault,
    build::{UID, cluster, garbage_collector, noise, process},
};
use jiff::Timestamp;
use job_handler_shared::{
    keys,
    result::storage_kind::{SECRET_TYPE, StorageKind},
};
use job_handler_sink::reconcile::job::JobReconciler;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};

/// What the Job's container writes to its log and as its termination message.
const WRITTEN: &str = "password=hunter2";

fn policy(kind: StorageKind) -> Value {
    json!({"results": {"storageType": kind.kind(), "ttlSeconds": 1,
        "logs": {"maxBytesPerContainer": "3Mi", "maxBytesPerJob": "3Mi"}}})
}

/// A process with or without the rights on Secrets.
fn started(apiserver: &Apiserver, kind: StorageKind, may: bool) -> JobReconciler {
    let reconciler = process(apiserver, policy(kind));
    if may {
        reconciler.store.secrets.allow();
    } else {
        reconciler.store.secrets.deny("the sink has no right to create Secrets".to_owned());
    }
    reconciler
}

async fn until_done(apiserver: &Apiserver, kind: StorageKind, uid: &str) {
    for _ in 0..10 {
        if started(apiserver, kind, true).reconcile_job(uid).await.is_ok() {
            return;
        }
    }
    panic!("never gets through: {:#?}", apiserver.calls());
}

/// A failed Job whose container wrote a secret.
fn cluster_with_secret(log: &[u8]) -> Apiserver {
    let apiserver = cluster(log);
    let mut pod = apiserver.get("pods", "ci", "build-x").unwrap();
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = WRITTEN.into();
    apiserver.put("pods", pod);
    apiserver
}

fn data(secret: &Value, key: &str) -> Vec<u8> {
    let bytes: ByteString = serde_json::from_value(secret["data"][key].clone()).unwrap();
    bytes.0
}

fn manifest(secret: &Value) -> Value {
    serde_json::from_slice(&data(secret, "result.json")).unwrap()
}

fn check_end(apiserver: &Apiserver, shards: usize, how: &str) {
    assert_eq!(apiserver.all("configmaps"), Vec::<Value>::new(), "{how}");
    let secrets = apiserver.all("secrets");
    assert!(secrets.iter().all(|secret| secret["type"] == SECRET_TYPE), "{how}");
    let result = apiserver.get("secrets", "ci", "build-results").unwrap();
    let manifest = manifest(&result);
    assert_eq!(manifest["job"]["uid"], UID, "{how}");
    assert_eq!(manifest["announcementsPending"], json!([]), "{how}");
    assert_eq!(manifest["completeness"]["complete"], true, "{how}: {manifest}");
    let listed = manifest["logs"]["shards"].as_array().cloned().unwrap_or_default();
    assert_eq!(
        (listed.len(), secrets.len() - 1),
        (shards, shards),
        "{how}: no shard is missing or left over"
    );
    let job = apiserver.get("jobs", "ci", "build").unwrap();
    assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results", "{how}");
    let events = apiserver.all("events");
    assert_eq!(events.len(), 1, "{how}");
    assert_eq!(events[0]["related"]["kind"], "Secret");
    let note = events[0]["note"].as_str().unwrap();
    assert!(
        note.contains("exit code 3") && note.ends_with("Result: Secret ci/build-results"),
        "{how}: {note}"
    );
    assert!(!note.contains(WRITTEN), "{how}: everyone reads Events: {note}");
}

#[tokio::test]
async fn after_a_crash_at_any_write_the_result_is_in_secrets_only() {
    let large = [noise(1_500_000), b"\nthe end".to_vec()].concat();
    for (log, shards) in [(format!("{WRITTEN}\n").into_bytes(), 0), (large, 2)] {
        let undisturbed = cluster_with_secret(&log);
        until_done(&undisturbed, StorageKind::Secret, UID).await;
        check_end(&undisturbed, shards, "undisturbed");
        for write in 0..undisturbed.writes() {
            for fault in [Fault::DeadBefore, Fault::DeadAfter, Fault::AnswerLost, Fault::Code(409)] {
                let apiserver = cluster_with_secret(&log);
                apiserver.fault(write, fault);
                let _killed = started(&apiserver, StorageKind::Secret, true).reconcile_job(UID).await;
                apiserver.revive();
                until_done(&apiserver, StorageKind::Secret, UID).await;
                until_done(&apiserver, StorageKind::Secret, UID).await;
                check_end(&apiserver, shards, &format!("{fault:?} at write {write}"));
            }
        }
    }
}

#[tokio::test]
async fn a_secret_has_the_same_content_as_the_config_map() {
    let of = async |kind: StorageKind| {
        let apiserver = cluster_with_secret(b"caf\xc3\xa9 \xff\x00\n");
        until_done(&apiserver, kind, UID).await;
        apiserver
    };
    let map = of(StorageKind::ConfigMap).await.get("configmaps", "ci", "build-results").unwrap();
    let secret = of(StorageKind::Secret).await.get("secrets", "ci", "build-results").unwrap();
    let text = map["data"].as_object().unwrap();
    let binary = map["binaryData"].as_object().unwrap();
    let typed: Secret = serde_json::from_value(secret.clone()).unwrap();
    assert_eq!(typed.data.unwrap().len(), text.len() + binary.len());
    for (key, value) in text.iter().filter(|(key, _)| *key != "result.json") {
        assert_eq!(data(&secret, key), value.as_str().unwrap().as_bytes(), "{key}");
    }
    for (key, value) in binary {
        assert_eq!(&secret["data"][key], value, "{key}");
    }
    let mut manifest = manifest(&secret);
    // That is what Events say of it.
    manifest.as_object_mut().unwrap().remove("told").unwrap();
    let plain: Value = serde_json::from_str(text["result.json"].as_str().unwrap()).unwrap();
    assert_eq!(manifest, plain);
    assert_eq!(secret["metadata"]["labels"], map["metadata"]["labels"]);
}

#[tokio::test]
async fn without_the_rights_nothing_that_a_container_wrote_is_stored() {
    let apiserver = cluster_with_secret(format!("{WRITTEN}\n").as_bytes());
    started(&apiserver, StorageKind::Secret, false).reconcile_job(UID).await.unwrap();
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    let manifest: Value = serde_json::from_str(result["data"]["result.json"].as_str().unwrap()).unwrap();
    assert_eq!(result["data"]["status"], "failed");
    assert_eq!(manifest["pods"][0]["containers"][0]["state"]["exitCode"], 3);
    let lost = manifest["completeness"]["lost"].to_string();
    assert!(
        lost.contains("were to be kept in a Secret, and the sink has no right to create Secrets"),
        "{lost}"
    );
    assert!(manifest.get("logs").is_none() && result["data"].get("logs").is_none());
    for resource in ["configmaps", "secrets", "events", "jobs"] {
        let all = json!(apiserver.all(resource)).to_string();
        assert!(!all.contains(WRITTEN), "{resource}: {all}");
    }
    assert_eq!(apiserver.all("secrets"), Vec::<Value>::new());
    assert_eq!(apiserver.all("events").len(), 1);

    // The right comes: what was stored is the result, and stays.
    until_done(&apiserver, StorageKind::Secret, UID).await;
    assert_eq!((apiserver.all("configmaps").len(), apiserver.all("secrets").len()), (1, 0));
}

#[tokio::test]
async fn a_job_waits_while_its_secret_cannot_be_read() {
    let apiserver = cluster_with_secret(b"x\n");
    until_done(&apiserver, StorageKind::Secret, UID).await;
    let writes = apiserver.writes();
    let without_rights = started(&apiserver, StorageKind::Secret, false);
    // It started after the right was revoked: no watch has delivered a Secret.
    without_rights.store.remove_results(|_, result| result.kind == StorageKind::Secret);
    without_rights.reconcile_job(UID).await.unwrap();
    assert_eq!(apiserver.writes(), writes, "{:#?}", apiserver.calls());
    until_done(&apiserver, StorageKind::Secret, UID).await;
    check_end(&apiserver, 0, "the right is back");
}

#[tokio::test]
async fn an_older_result_moves_whatever_its_kind() {
    const NEWER: &str = "abcdefghij";
    for (before, now) in [
        (StorageKind::ConfigMap, StorageKind::Secret),
        (StorageKind::Secret, StorageKind::ConfigMap),
        (StorageKind::Secret, StorageKind::Secret),
    ] {
        let resource = |kind: StorageKind| format!("{}s", kind.resource());
        let first = cluster_with_secret(b"run one\n");
        until_done(&first, before, UID).await;
        let older = first.get(&resource(before), "ci", "build-results").unwrap();
        let mut job = first.get("jobs", "ci", "build").unwrap();
        job["metadata"]["uid"] = NEWER.into();
        job["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z".into();
        job["metadata"]["annotations"] = json!({});
        for write in 0..8 {
            for fault in [Fault::DeadBefore, Fault::DeadAfter] {
                let how = format!("{before:?}, then {now:?}: {fault:?} at write {write}");
                let apiserver = cluster_with_secret(b"run two\n");
                apiserver.put(&resource(before), older.clone());
                let mut pod = apiserver.get("pods", "ci", "build-x").unwrap();
                pod["metadata"]["ownerReferences"][0]["uid"] = NEWER.into();
                apiserver.put("pods", pod);
                apiserver.put("jobs", job.clone());
                apiserver.fault(write, fault);
                let _killed = started(&apiserver, now, true).reconcile_job(NEWER).await;
                let kept = apiserver.all(&resource(before));
                let of_older = kept.iter().filter(|held| held["metadata"]["labels"][keys::JOB_UID] == UID);
                assert_ne!(of_older.count(), 0, "{how}: at no moment it is nowhere");
                apiserver.revive();
                until_done(&apiserver, now, NEWER).await;
                let moved = apiserver.get(&resource(before), "ci", "build-results-01234567").unwrap();
                assert_eq!(moved["data"], older["data"], "{how}");
                let newer = apiserver.get(&resource(now), "ci", "build-results").unwrap();
                assert_eq!(newer["metadata"]["labels"][keys::JOB_UID], NEWER, "{how}");
                assert_eq!(apiserver.all("configmaps").len() + apiserver.all("secrets").len(), 2, "{how}");
            }
        }
    }
}

#[tokio::test]
async fn a_secret_of_another_type_is_not_overwritten() {
    let foreign = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"result.json": "e30="},
        "metadata": {"name": "build-results", "namespace": "ci", "labels": {keys::CREATED: "true"}}});
    let apiserver = cluster_with_secret(b"hello\n");
    apiserver.put("secrets", foreign);
    let before = apiserver.get("secrets", "ci", "build-results");
    until_done(&apiserver, StorageKind::Secret, UID).await;
    assert_eq!(apiserver.get("secrets", "ci", "build-results"), before);
    let beside = apiserver.get("secrets", "ci", "build-results-01234567").unwrap();
    assert!(String::from_utf8(data(&beside, "logs")).unwrap().contains("hello"));
    let notes: Vec<_> = apiserver.all("events").iter().map(|e| e["note"].to_string()).collect();
    assert!(
        notes
            .iter()
            .any(|note| note.contains("Secret ci/build-results exists and does not belong to job-handler")),
        "{notes:?}"
    );
}

#[tokio::test]
async fn retention_deletes_secrets_and_their_shards() {
    let harvested = async || {
        let apiserver = cluster_with_secret(&noise(1_500_000));
        until_done(&apiserver, StorageKind::Secret, UID).await;
        apiserver
    };
    let collector = |apiserver: &Apiserver, may: bool| {
        let reconciler = started(apiserver, StorageKind::Secret, may);
        garbage_collector(apiserver, &reconciler, StorageKind::Secret, None)
    };
    let apiserver = harvested().await;
    assert_eq!(collector(&apiserver, false).delete_expired(Timestamp::now()).await, 0, "without rights");
    assert_eq!(apiserver.all("secrets").len(), 3);
    for write in 0..4 {
        let apiserver = harvested().await;
        apiserver.fault(write, Fault::DeadAfter);
        collector(&apiserver, true).delete_expired(Timestamp::now()).await;
        apiserver.revive();
        let collector = collector(&apiserver, true);
        collector.delete_expired(Timestamp::now()).await;
        let suspects = collector.delete_orphaned_shards(&Default::default()).await.unwrap();
        collector.delete_orphaned_shards(&suspects).await.unwrap();
        assert_eq!(apiserver.all("secrets"), Vec::<Value>::new(), "killed after write {write}");
        started(&apiserver, StorageKind::Secret, true).reconcile_job(UID).await.unwrap();
        assert_eq!(apiserver.all("secrets"), Vec::<Value>::new(), "harvested again");
    }
}
