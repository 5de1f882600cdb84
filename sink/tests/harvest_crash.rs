//! Harvest against an in-memory apiserver: the process is killed before and after each single write, and each write fails
//! once in each way. The next process always ends with one complete result and one Event.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use common::{
    Apiserver, Fault,
    build::{UID, cluster, noise, process},
};
use job_handler_shared::{keys, result::metadata};
use serde_json::{Value, json};

/// Runs processes until one succeeds.
async fn until_done(apiserver: &Apiserver, policy: &Value) {
    for _ in 0..10 {
        if process(apiserver, policy.clone()).reconcile_job(UID).await.is_ok() {
            return;
        }
    }
    panic!("no process succeeds: {:#?}", apiserver.calls());
}

fn check_end(apiserver: &Apiserver, deleted: bool, shards: usize, how: &str) {
    let maps = apiserver.all("configmaps");
    let results: Vec<_> = maps.iter().filter(|m| m["metadata"]["labels"][keys::CREATED] == "true").collect();
    assert_eq!(results.len(), 1, "{how}: {:#?}", apiserver.calls());
    let manifest: Value = serde_json::from_str(results[0]["data"]["result.json"].as_str().unwrap()).unwrap();
    assert_eq!(manifest["job"]["uid"], UID, "{how}");
    assert_eq!(manifest["announcementsPending"], json!([]), "{how}");
    assert!(results[0]["metadata"]["labels"].get(metadata::PENDING).is_none(), "{how}");
    assert_eq!(manifest["completeness"]["complete"], true, "{how}: {manifest}");
    let listed: Vec<_> = manifest["logs"]["shards"].as_array().cloned().unwrap_or_default();
    assert_eq!((listed.len(), maps.len() - 1), (shards, shards), "{how}: no shard is missing or left over");
    for shard in listed {
        assert!(maps.iter().any(|map| map["metadata"]["name"] == shard["name"]), "{how}");
    }
    let events = apiserver.all("events");
    assert_eq!(events.len(), 1, "{how}");
    assert_eq!(events[0]["reason"], "JobProcessing");
    assert_eq!(events[0]["regarding"]["uid"], UID);
    match apiserver.get("jobs", "ci", "build") {
        None => assert!(deleted, "{how}: deleted although no policy requests it"),
        Some(job) => {
            assert!(!deleted, "{how}: still there");
            assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results", "{how}");
            assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 60, "{how}");
        }
    }
}

fn large_logs() -> Value {
    json!({"results": {"logs": {"maxBytesPerContainer": "3Mi", "maxBytesPerJob": "3Mi"}},
        "cleanup": {"failedPolicy": "AfterHarvest"}})
}

#[tokio::test]
async fn writes_come_in_the_order_that_survives_a_crash() {
    let apiserver = cluster(&noise(1_500_000));
    until_done(&apiserver, &large_logs()).await;
    check_end(&apiserver, true, 2, "undisturbed");
    let maps = "/api/v1/namespaces/ci/configmaps";
    assert_eq!(
        apiserver.calls(),
        [
            format!("POST {maps} 201"),
            format!("POST {maps} 201"),
            format!("POST {maps} 201"),
            "PATCH /apis/batch/v1/namespaces/ci/jobs/build 200".to_owned(),
            "POST /apis/events.k8s.io/v1/namespaces/ci/events 201".to_owned(),
            format!("PATCH {maps}/build-results 200"),
            "DELETE /apis/batch/v1/namespaces/ci/jobs/build 200".to_owned(),
        ]
    );
}

#[tokio::test]
async fn the_next_process_completes_a_harvest_killed_at_any_write() {
    for (policy, log, shards, deleted) in [
        (json!({"results": {}}), b"hello\n".to_vec(), 0, false),
        (json!({"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}}), b"hello\n".to_vec(), 0, true),
        (large_logs(), noise(1_500_000), 2, true),
    ] {
        let undisturbed = cluster(&log);
        until_done(&undisturbed, &policy).await;
        for write in 0..undisturbed.writes() {
            for fault in [Fault::DeadBefore, Fault::DeadAfter] {
                let apiserver = cluster(&log);
                apiserver.fault(write, fault);
                let killed = process(&apiserver, policy.clone()).reconcile_job(UID).await;
                // The last write may have been made: then there is nothing to report.
                assert!(killed.is_err(), "{fault:?} at {write}");
                apiserver.revive();
                until_done(&apiserver, &policy).await;
                // And once more, as every resync does.
                until_done(&apiserver, &policy).await;
                check_end(&apiserver, deleted, shards, &format!("{fault:?} at write {write}"));
            }
        }
    }
}

#[tokio::test]
async fn a_harvest_survives_a_failure_of_any_write() {
    let policy = json!({"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}});
    let log = b"hello\n";
    let undisturbed = cluster(log);
    until_done(&undisturbed, &policy).await;
    for write in 0..undisturbed.writes() {
        for fault in [Fault::AnswerLost, Fault::Code(409), Fault::Code(429), Fault::Code(500)] {
            let apiserver = cluster(log);
            apiserver.fault(write, fault);
            until_done(&apiserver, &policy).await;
            until_done(&apiserver, &policy).await;
            check_end(&apiserver, true, 0, &format!("{fault:?} at write {write}"));
        }
    }
}

#[tokio::test]
async fn a_job_deleted_before_its_event_still_gets_the_event() {
    let policy = json!({"results": {}});
    let apiserver = cluster(b"hello\n");
    // 0: manifest, 1: mark, 2: Event.
    apiserver.fault(2, Fault::DeadBefore);
    assert!(process(&apiserver, policy.clone()).reconcile_job(UID).await.is_err());
    apiserver.remove("jobs", "ci", "build");
    apiserver.remove("pods", "ci", "build-x");
    apiserver.revive();
    until_done(&apiserver, &policy).await;
    check_end(&apiserver, true, 0, "deleted meanwhile");
}

#[tokio::test]
async fn a_foreign_config_map_is_not_overwritten_and_reported() {
    let policy = json!({"results": {}});
    for labels in [json!({}), json!({keys::CREATED: "true"})] {
        let foreign = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "build-results", "namespace": "ci", "labels": labels}, "data": {"mine": "yes"}});
        let undisturbed = cluster(b"hello\n");
        undisturbed.put("configmaps", foreign.clone());
        until_done(&undisturbed, &policy).await;
        for write in 0..=undisturbed.writes() {
            let apiserver = cluster(b"hello\n");
            apiserver.put("configmaps", foreign.clone());
            let before = apiserver.get("configmaps", "ci", "build-results");
            apiserver.fault(write, Fault::DeadAfter);
            let _killed = process(&apiserver, policy.clone()).reconcile_job(UID).await;
            apiserver.revive();
            until_done(&apiserver, &policy).await;
            assert_eq!(apiserver.get("configmaps", "ci", "build-results"), before, "untouched");
            let beside = apiserver.get("configmaps", "ci", "build-results-01234567").unwrap();
            assert!(beside["data"]["logs"].as_str().unwrap().contains("hello"));
            let mut reasons: Vec<_> =
                apiserver.all("events").iter().map(|e| e["reason"].as_str().unwrap().to_owned()).collect();
            reasons.sort();
            assert_eq!(reasons, ["JobProcessing", "ResultNameTaken"], "killed after write {write}");
            let job = apiserver.get("jobs", "ci", "build").unwrap();
            assert_eq!(job["metadata"]["annotations"][keys::RESULTS], "build-results-01234567");
        }
    }
}

#[tokio::test]
async fn an_older_runs_result_moves_with_all_its_shards() {
    let policy = json!({"results": {}});
    let first = cluster(b"run one\n");
    until_done(&first, &policy).await;
    let older = first.get("configmaps", "ci", "build-results").unwrap();
    let mut job = first.get("jobs", "ci", "build").unwrap();
    job["metadata"]["uid"] = "abcdefghij".into();
    job["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z".into();
    job["metadata"]["annotations"] = json!({});
    for write in 0..6 {
        let apiserver = cluster(b"run two\n");
        apiserver.put("configmaps", older.clone());
        let mut pod = apiserver.get("pods", "ci", "build-x").unwrap();
        pod["metadata"]["ownerReferences"][0]["uid"] = "abcdefghij".into();
        apiserver.put("pods", pod);
        apiserver.put("jobs", job.clone());
        apiserver.fault(write, Fault::DeadAfter);
        let _killed = process(&apiserver, policy.clone()).reconcile_job("abcdefghij").await;
        apiserver.revive();
        assert!(process(&apiserver, policy.clone()).reconcile_job("abcdefghij").await.is_ok());
        let moved = apiserver.get("configmaps", "ci", "build-results-01234567").unwrap();
        assert_eq!(moved["data"], older["data"], "killed after write {write}");
        let now = apiserver.get("configmaps", "ci", "build-results").unwrap();
        assert!(now["data"]["logs"].as_str().unwrap().contains("run two"));
        assert_eq!(apiserver.all("configmaps").len(), 2);
    }
}

#[tokio::test]
async fn a_rejected_write_is_repeated_without_logs() {
    // Too large for this namespace's quota, but not without the logs.
    let policy = large_logs();
    let apiserver = cluster(&noise(1_500_000));
    apiserver.fault(1, Fault::Code(413));
    until_done(&apiserver, &policy).await;
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    let manifest: Value = serde_json::from_str(result["data"]["result.json"].as_str().unwrap()).unwrap();
    assert_eq!(manifest["completeness"]["complete"], false);
    assert!(manifest["completeness"]["lost"].to_string().contains("HTTP 413"), "{manifest}");
    assert_eq!(result["data"]["status"], "failed");
    assert_eq!(apiserver.all("configmaps").len(), 1, "no shard is left over");
    assert!(apiserver.get("jobs", "ci", "build").is_none(), "deleted as asked");

    // Nothing can be written at all: reported once, and the Job keeps its harvest deadline.
    let apiserver = cluster(b"hello\n");
    let quota = r#"configmaps "build-results" is forbidden: exceeded quota: few"#;
    apiserver.refuse("configmaps", 403, quota);
    for _ in 0..3 {
        assert!(process(&apiserver, policy.clone()).reconcile_job(UID).await.is_err());
    }
    let events = apiserver.all("events");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["reason"], "ResultLost");
    assert!(events[0]["note"].as_str().unwrap().contains("exceeded quota"));
    assert_eq!(apiserver.get("jobs", "ci", "build").unwrap()["spec"]["ttlSecondsAfterFinished"], 604_800);
    // Once there is room, the result is stored.
    apiserver.revive();
    until_done(&apiserver, &policy).await;
    assert!(apiserver.get("configmaps", "ci", "build-results").is_some());
}

#[tokio::test]
async fn a_result_rejected_by_a_quota_is_complete_once_there_is_room() {
    // A quota counts objects: without its logs the result would take the same place.
    let policy = json!({"results": {}});
    let apiserver = cluster(b"hello\n");
    apiserver.fault(0, Fault::Quota);
    assert!(
        process(&apiserver, policy.clone()).reconcile_job(UID).await.is_err(),
        "reported, and retried later"
    );
    until_done(&apiserver, &policy).await;
    assert!(is_complete(&apiserver));

    // A large one takes several places, without its logs only one.
    let policy = large_logs();
    let apiserver = cluster(&noise(1_500_000));
    apiserver.fault(1, Fault::Quota);
    until_done(&apiserver, &policy).await;
    assert!(!is_complete(&apiserver));
    assert_eq!(apiserver.all("configmaps").len(), 1, "no shard is left over");
}

fn is_complete(apiserver: &Apiserver) -> bool {
    let result = apiserver.get("configmaps", "ci", "build-results").unwrap();
    let manifest: Value = serde_json::from_str(result["data"]["result.json"].as_str().unwrap()).unwrap();
    manifest["completeness"]["complete"] == true
}
