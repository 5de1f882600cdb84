//! Retention against an in-memory apiserver: the process is killed before and after each single write. The next one always
//! ends without the result, without a shard of it, and without a second harvest.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::collections::BTreeSet;

use common::{
    Apiserver, Fault,
    build::{UID, cluster, garbage_collector, noise, process},
};
use jiff::Timestamp;
use job_handler_shared::{job::snapshot::JobSnapshot, keys, result::storage_kind::StorageKind};
use job_handler_sink::{reconcile::job::JobReconciler, retention::gc::GarbageCollector};
use serde_json::{Value, json};

fn policy() -> Value {
    json!({"results": {"ttlSeconds": 1, "logs": {"maxBytesPerContainer": "3Mi", "maxBytesPerJob": "3Mi"}}})
}

/// A process that has just started, with its garbage collector.
fn started(apiserver: &Apiserver) -> (JobReconciler, GarbageCollector) {
    let reconciler = process(apiserver, policy());
    let collector = garbage_collector(apiserver, &reconciler, StorageKind::ConfigMap, None);
    (reconciler, collector)
}

async fn harvested() -> Apiserver {
    let apiserver = cluster(&noise(1_500_000));
    assert!(process(&apiserver, policy()).reconcile_job(UID).await.is_ok());
    assert_eq!(apiserver.all("configmaps").len(), 3);
    apiserver
}

#[tokio::test]
async fn after_a_crash_at_any_write_nothing_is_left_behind() {
    let undisturbed = harvested().await;
    let before = undisturbed.writes();
    assert_eq!(started(&undisturbed).1.delete_expired(Timestamp::now()).await, 1);
    assert_eq!(undisturbed.all("configmaps"), Vec::<Value>::new());
    let writes = undisturbed.writes() - before;
    assert_eq!(
        writes,
        4,
        "the Job is annotated, the result is deleted, its shards are deleted: {:#?}",
        undisturbed.calls()
    );
    for write in 0..writes {
        for fault in
            [Fault::DeadBefore, Fault::DeadAfter, Fault::AnswerLost, Fault::Code(500), Fault::Code(409)]
        {
            let how = format!("{fault:?} at {write}");
            let apiserver = harvested().await;
            apiserver.fault(write, fault);
            started(&apiserver).1.delete_expired(Timestamp::now()).await;
            apiserver.revive();
            let (reconciler, collector) = started(&apiserver);
            collector.delete_expired(Timestamp::now()).await;
            // Not at once: a shard without a result may be one whose result is just being written.
            let suspects = collector.delete_orphaned_shards(&BTreeSet::new()).await.unwrap();
            collector.delete_orphaned_shards(&suspects).await.unwrap();
            assert_eq!(apiserver.all("configmaps"), Vec::<Value>::new(), "{how}");
            assert!(reconciler.reconcile_job(UID).await.is_ok(), "{how}");
            assert_eq!(apiserver.all("configmaps"), Vec::<Value>::new(), "{how}: harvested again");
            assert_eq!(apiserver.all("events").len(), 1, "{how}");
        }
    }
}

#[tokio::test]
async fn an_object_edited_so_that_it_is_no_result_is_not_deleted() {
    let apiserver = harvested().await;
    let mut edited = apiserver.get("configmaps", "ci", "build-results").unwrap();
    edited["data"]["result.json"] = "my own notes".into();
    apiserver.put("configmaps", edited);
    assert_eq!(started(&apiserver).1.delete_expired(Timestamp::now()).await, 0);
    assert_eq!(apiserver.all("configmaps").len(), 3);
    assert!(
        apiserver.get("jobs", "ci", "build").unwrap()["metadata"]["annotations"].get(keys::RETIRED).is_none()
    );
}

#[tokio::test]
async fn shards_of_a_harvest_in_progress_stay() {
    let apiserver = harvested().await;
    apiserver.remove("configmaps", "ci", "build-results");
    let (reconciler, collector) = started(&apiserver);
    assert!(
        collector.delete_orphaned_shards(&BTreeSet::new()).await.unwrap().is_empty(),
        "its harvest will overwrite them"
    );
    let gone: BTreeSet<String> = BTreeSet::new();
    let _buried = reconciler.store.retain_jobs(&gone);
    let job = apiserver.get("jobs", "ci", "build").unwrap();
    let job: JobSnapshot = JobSnapshot::from(&serde_json::from_value(job).unwrap());
    assert!(reconciler.store.job(&job.uid).is_none());
    let suspects = collector.delete_orphaned_shards(&BTreeSet::new()).await.unwrap();
    assert_eq!(suspects.len(), 2);
    assert_eq!(apiserver.all("configmaps").len(), 2, "not deleted on the first check");
    collector.delete_orphaned_shards(&suspects).await.unwrap();
    assert!(apiserver.all("configmaps").is_empty());
}
