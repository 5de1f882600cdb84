//! Full logs in a folder, against an in-memory apiserver: the process is killed before and after each single write of a
//! harvest and of a deletion. There is always one object or none, and a result names it; a failing store costs only what
//! would be truncated without one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

use common::{
    Apiserver, Fault,
    build::{UID, cluster, garbage_collector, noise, process, set_policy},
};
use http::Method;
use jiff::Timestamp;
use job_handler_shared::{process::telemetry::Metrics, result::storage_kind::StorageKind};
use job_handler_sink::{
    config::Config,
    object_store::FullLogStore,
    reconcile::job::JobReconciler,
    retention::{gc::GarbageCollector, object_gc},
};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const LENGTH: usize = 100_000;

fn policy() -> Value {
    json!({"results": {"ttlSeconds": 1, "logs": {"maxBytesPerContainer": "1Ki"}}})
}

/// A cluster with one failed Job and a store in a folder.
struct Ground {
    apiserver: Apiserver,
    folder: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let apiserver = cluster(&noise(LENGTH));
        apiserver.put(
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "kube-system", "uid": "cluster-1"}}),
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("store")).unwrap();
        Self { apiserver, folder }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn objects(&self) -> FullLogStore {
        let file = self.folder.path().join("config.yaml");
        let (store, spool) = (self.store(), self.folder.path().join("spool"));
        let text = json!({"objectStore": {"url": format!("file://{}", store.display()), "spool": {"folder": spool}}});
        std::fs::write(&file, text.to_string()).unwrap();
        let config = Config::load(&file).unwrap().objects.unwrap();
        FullLogStore::open(&config, "sink-0", &Metrics::default()).unwrap()
    }

    /// A process that has just started.
    fn process(&self) -> (JobReconciler, GarbageCollector, FullLogStore) {
        let objects = self.objects();
        let mut reconciler = process(&self.apiserver, policy());
        reconciler.collector = reconciler.collector.with_objects(Some(objects.clone()));
        let collector =
            garbage_collector(&self.apiserver, &reconciler, StorageKind::ConfigMap, Some(objects.clone()));
        (reconciler, collector, objects)
    }

    async fn harvest(&self) -> bool {
        let (reconciler, ..) = self.process();
        Box::pin(reconciler.reconcile_job(UID)).await.is_ok()
    }

    /// Two runs of the store's garbage collector; returns the number of folders that the first one suspected.
    async fn gc(&self) -> usize {
        let (reconciler, _, objects) = self.process();
        let run_gc = async |suspects| {
            object_gc::delete_orphaned_folders(
                &objects,
                &self.apiserver.client(),
                &reconciler.store,
                &suspects,
            )
            .await
            .unwrap()
        };
        let suspects = run_gc(BTreeSet::new()).await;
        let number = suspects.len();
        run_gc(suspects).await;
        number
    }

    /// All objects except the mark.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        walk(&self.store(), &mut found);
        found.retain(|path| path.file_name().unwrap() != ".job-handler-cluster");
        found
    }

    fn manifest(&self) -> Value {
        let result = self.apiserver.get("configmaps", "ci", "build-results").unwrap();
        serde_json::from_str(result["data"]["result.json"].as_str().unwrap()).unwrap()
    }

    fn check(&self, how: &str) {
        let manifest = self.manifest();
        let log = &manifest["pods"][0]["containers"][0]["logs"][0];
        assert_eq!((&log["length"], &log["leftOut"]), (&json!(LENGTH), &json!(LENGTH - 1024)), "{how}");
        assert_eq!(log["sha256"], format!("{:x}", Sha256::digest(noise(LENGTH))), "{how}");
        assert_eq!(manifest["completeness"], json!({"complete": true}), "{how}");
        let files = self.files();
        let [file] = &files[..] else { panic!("{how}: {files:?}") };
        assert_eq!(log["whole"]["url"], format!("file://{}", file.display()), "{how}");
        assert_eq!(log["whole"]["bytes"], std::fs::metadata(file).unwrap().len(), "{how}");
        let folder = format!("file://{}/ci/{UID}/", self.store().display());
        assert_eq!(
            manifest["objects"],
            json!({"url": folder, "count": 1, "bytes": log["whole"]["bytes"]}),
            "{how}"
        );
        let mut whole = Vec::new();
        let file = std::fs::File::open(file).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut whole).unwrap();
        assert!(whole == noise(LENGTH), "{how}: every byte");
    }
}

#[tokio::test]
async fn after_a_crash_at_any_write_there_is_one_full_log() {
    let undisturbed = Ground::new();
    assert!(undisturbed.harvest().await);
    undisturbed.check("undisturbed");
    for write in 0..undisturbed.apiserver.writes() {
        for fault in [Fault::DeadBefore, Fault::DeadAfter, Fault::AnswerLost, Fault::Code(500)] {
            let how = format!("{fault:?} at {write}");
            let ground = Ground::new();
            ground.apiserver.fault(write, fault);
            let _killed = ground.harvest().await;
            ground.apiserver.revive();
            assert_eq!(ground.gc().await, 0, "{how}: its Job is there, and its result may be on its way");
            assert!(ground.harvest().await, "{how}");
            assert!(ground.harvest().await, "{how}: and again");
            assert_eq!(ground.gc().await, 0, "{how}");
            ground.check(&how);
        }
    }
}

#[tokio::test]
async fn an_upload_without_a_result_is_deleted() {
    let ground = Ground::new();
    ground.apiserver.fault(0, Fault::DeadBefore);
    assert!(!ground.harvest().await);
    assert_eq!(ground.files().len(), 1, "objects come first");
    ground.apiserver.revive();
    // The Job is deleted before a sink runs again.
    ground.apiserver.remove("jobs", "ci", "build");
    ground.apiserver.remove("pods", "ci", "build-x");
    let (reconciler, _, objects) = ground.process();
    let first = object_gc::delete_orphaned_folders(
        &objects,
        &ground.apiserver.client(),
        &reconciler.store,
        &BTreeSet::new(),
    )
    .await
    .unwrap();
    assert_eq!((first.len(), ground.files().len()), (1, 1), "not deleted on the first check");
    assert_eq!(ground.gc().await, 1);
    assert_eq!(ground.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn objects_of_an_earlier_attempt_are_deleted_with_the_next() {
    let ground = Ground::new();
    let leftover = ground.store().join("ci").join(UID).join("build-gone");
    std::fs::create_dir_all(&leftover).unwrap();
    std::fs::write(leftover.join("main-0.log.gz"), "of a deleted pod").unwrap();
    assert!(ground.harvest().await);
    ground.check("the leftover is gone");
}

#[tokio::test]
async fn a_log_within_its_budget_is_not_uploaded() {
    let ground = Ground::new();
    ground.apiserver.put_log("build-x", "main", b"short\n");
    let leftover = ground.store().join("ci").join(UID).join("build-gone");
    std::fs::create_dir_all(&leftover).unwrap();
    std::fs::write(leftover.join("main-0.log.gz"), "of a harvest that came to nothing").unwrap();
    assert!(ground.harvest().await);
    assert!(ground.manifest().get("objects").is_none());
    assert_eq!(ground.gc().await, 1);
    assert_eq!(ground.files(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn objects_are_deleted_with_their_result_after_a_crash_at_any_write() {
    let undisturbed = Ground::new();
    assert!(undisturbed.harvest().await);
    let before = undisturbed.apiserver.writes();
    assert_eq!(undisturbed.process().1.delete_expired(Timestamp::now()).await, 1);
    assert_eq!(undisturbed.files(), Vec::<PathBuf>::new());
    for write in 0..undisturbed.apiserver.writes() - before {
        for fault in [Fault::DeadBefore, Fault::DeadAfter, Fault::AnswerLost, Fault::Code(500)] {
            let how = format!("{fault:?} at {write}");
            let ground = Ground::new();
            assert!(ground.harvest().await);
            ground.apiserver.fault(write, fault);
            ground.process().1.delete_expired(Timestamp::now()).await;
            if ground.apiserver.get("configmaps", "ci", "build-results").is_some() {
                ground.check(&format!("{how}: no result without its objects"));
            }
            ground.apiserver.revive();
            ground.process().1.delete_expired(Timestamp::now()).await;
            ground.gc().await;
            assert_eq!(ground.apiserver.all("configmaps"), Vec::<Value>::new(), "{how}");
            assert_eq!(ground.files(), Vec::<PathBuf>::new(), "{how}");
        }
    }
}

#[tokio::test]
async fn with_a_failing_store_the_log_is_truncated_with_a_reason() {
    let ground = Ground::new();
    let process = ground.process();
    std::fs::remove_dir(ground.store()).unwrap();
    std::fs::write(ground.store(), "no folder").unwrap();
    assert!(Box::pin(process.0.reconcile_job(UID)).await.is_ok());
    let manifest = ground.manifest();
    let log = &manifest["pods"][0]["containers"][0]["logs"][0];
    assert_eq!(log["leftOut"], LENGTH - 1024, "{manifest}");
    let lost = log["lost"].as_str().unwrap();
    assert!(lost.starts_with("the full log could not be stored: "), "{lost}");
    assert_eq!(manifest["completeness"]["complete"], false);
    assert!(log.get("whole").is_none() && manifest.get("objects").is_none(), "{manifest}");
}

#[tokio::test]
async fn objects_of_another_cluster_are_not_deleted() {
    let ground = Ground::new();
    let strange = ground.store().join("prod/another-uid/a-pod");
    std::fs::create_dir_all(&strange).unwrap();
    std::fs::write(strange.join("main-0.log.gz"), "theirs").unwrap();
    std::fs::write(ground.store().join(".job-handler-cluster"), "cluster-2").unwrap();
    let (reconciler, _, objects) = ground.process();
    let outcome = object_gc::delete_orphaned_folders(
        &objects,
        &ground.apiserver.client(),
        &reconciler.store,
        &BTreeSet::new(),
    )
    .await;
    let why = outcome.unwrap_err();
    assert!(why.contains("cluster-2") && why.contains("its own prefix"), "{why}");
    assert_eq!(ground.files().len(), 1);
}

#[tokio::test]
async fn logs_of_results_in_secrets_are_not_uploaded() {
    let wanted = json!({"results": {"storageType": "Secret", "logs": {"maxBytesPerContainer": "1Ki"}}});
    // From the start, or asked for while the log is read.
    for late in [false, true] {
        let ground = Ground::new();
        let (reconciler, ..) = ground.process();
        reconciler.store.secrets.allow();
        let (store, policy) = (reconciler.store.clone(), wanted.clone());
        let ask = move || set_policy(&store, 2, policy);
        if late {
            ground.apiserver.before(Method::GET, "/log", ask);
        } else {
            ask();
        }
        assert!(Box::pin(reconciler.reconcile_job(UID)).await.is_ok());
        assert_eq!(ground.files(), Vec::<PathBuf>::new(), "late: {late}");
        let secret = ground.apiserver.get("secrets", "ci", "build-results").unwrap();
        let data: ByteString = serde_json::from_value(secret["data"]["result.json"].clone()).unwrap();
        let manifest: Value = serde_json::from_slice(&data.0).unwrap();
        assert!(manifest.get("objects").is_none(), "{manifest}");
        let log = &manifest["pods"][0]["containers"][0]["logs"][0];
        assert_eq!((&log["leftOut"], log.get("whole")), (&json!(LENGTH - 1024), None), "{manifest}");
        assert_eq!(manifest["completeness"]["complete"], false);
    }
}
