use std::collections::BTreeMap;

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    testing::apiserver::{Apiserver, Fault},
};
use serde_json::{Value, json};

use super::*;
use crate::result::{manifest_update::update_manifest, packed};

const NAME: &str = "build-results";

/// The result of a run of Job `build` that was created at this minute.
fn result(uid: &str, minute: u8, logs: &str) -> Packed {
    let created = format!("2026-01-01T00:{minute:02}:00Z");
    let manifest = json!({
        "schemaVersion": 1, "outcome": "completed", "pods": [], "completeness": {"complete": true},
        "job": {"namespace": "ci", "name": "build", "uid": uid, "created": created, "finished": created,
            "succeededPods": 1, "failedPods": 0},
    });
    let manifest = Manifest::parse("ci", manifest.to_string().as_bytes()).unwrap();
    let job = JobSnapshot {
        namespace: "ci".into(),
        name: "build".into(),
        uid: uid.into(),
        ..JobSnapshot::default()
    };
    let mut packed = Packed {
        kind: StorageKind::ConfigMap,
        manifest,
        data: BTreeMap::new(),
        binary: BTreeMap::new(),
        shards: Vec::new(),
        requesting_policies: Vec::new(),
        policy_uids: Vec::new(),
        labels: packed::labels(&job, None, Outcome::Completed),
    };
    if !logs.is_empty() {
        packed.put_logs(logs.into());
    }
    packed
}

fn seal() -> Seal {
    let seal = Seal::default();
    seal.set_key(&[1; 32]);
    seal
}

fn with_uid(uid: &str) -> String {
    names::result_name_with_uid("build", uid)
}

fn foreign(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "ci"},
        "data": {"key": "mine"}})
}

fn stored_uid(apiserver: &Apiserver, name: &str) -> Option<String> {
    let map = apiserver.get("configmaps", "ci", name)?;
    Some(Manifest::parse("ci", map["data"]["result.json"].as_str()?.as_bytes()).ok()?.job.uid)
}

#[tokio::test]
async fn a_result_is_created_once_and_then_adopted() {
    let apiserver = Apiserver::default();
    let first = commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    assert_eq!((first.name.as_str(), first.fresh), (NAME, true));
    let again = commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    assert_eq!((again.name.as_str(), again.fresh, again.version), (NAME, false, first.version));
    assert_eq!(apiserver.writes(), 1);
}

#[tokio::test]
async fn a_foreign_object_keeps_its_name() {
    let apiserver = Apiserver::default();
    apiserver.put("configmaps", foreign(NAME));
    let stored = commit(&apiserver.client(), &seal(), result("u1", 1, ""), false).await.unwrap();
    assert_eq!(stored.name, with_uid("u1"));
    assert_eq!(stored.manifest.announcements_pending, [keys::REASON_NAME_TAKEN]);
    assert_eq!(apiserver.get("configmaps", "ci", NAME).unwrap()["data"], json!({"key": "mine"}));
}

/// The result of the Job with this uid as somebody without the key would forge it.
async fn put_forged(apiserver: &Apiserver, uid: &str, name: &str) -> Value {
    let elsewhere = Apiserver::default();
    commit(&elsewhere.client(), &Seal::default(), result(uid, 1, "forged"), false).await.unwrap();
    let mut forged = elsewhere.get("configmaps", "ci", NAME).unwrap();
    forged["metadata"]["name"] = name.into();
    apiserver.put("configmaps", forged)
}

#[tokio::test]
async fn a_forged_result_is_neither_adopted_nor_overwritten() {
    let apiserver = Apiserver::default();
    let forged = put_forged(&apiserver, "u1", NAME).await;
    let stored = commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    assert_eq!((stored.name, stored.fresh), (with_uid("u1"), true));
    assert_eq!(stored.manifest.announcements_pending, [keys::REASON_NAME_TAKEN]);
    assert_eq!(apiserver.get("configmaps", "ci", NAME).unwrap(), forged);
    let own = apiserver.get("configmaps", "ci", &with_uid("u1")).unwrap();
    assert!(own["data"]["logs"].as_str().unwrap().contains("log"));
}

#[tokio::test]
async fn a_forged_copy_does_not_cost_the_result_of_an_older_run() {
    let apiserver = Apiserver::default();
    commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    put_forged(&apiserver, "u1", &with_uid("u1")).await;
    let error = commit(&apiserver.client(), &seal(), result("u2", 2, ""), false).await.unwrap_err();
    assert!(matches!(error, CommitError::NamesTaken { .. }), "{error}");
    assert_eq!(stored_uid(&apiserver, NAME).as_deref(), Some("u1"));
}

/// The content of a manifest names another namespace, where the sink could write, too.
#[tokio::test]
async fn an_older_result_never_moves_to_another_namespace() {
    let apiserver = Apiserver::default();
    let mut forged = put_forged(&apiserver, "u1", NAME).await;
    let text = forged["data"]["result.json"].as_str().unwrap().replace("\"ci\"", "\"kube-system\"");
    assert!(text.contains("kube-system"));
    forged["data"]["result.json"] = text.into();
    apiserver.put("configmaps", forged);
    commit(&apiserver.client(), &seal(), result("u2", 2, ""), false).await.unwrap();
    let all = apiserver.all("configmaps");
    assert!(all.len() == 2 && all.iter().all(|map| map["metadata"]["namespace"] == "ci"), "{all:#?}");
}

#[tokio::test]
async fn with_both_names_taken_the_error_names_them() {
    let apiserver = Apiserver::default();
    apiserver.put("configmaps", foreign(NAME));
    apiserver.put("configmaps", foreign(&with_uid("u1")));
    let error =
        commit(&apiserver.client(), &seal(), result("u1", 1, ""), false).await.unwrap_err().to_string();
    assert!(error.contains(NAME) && error.contains(&with_uid("u1")), "{error}");
    assert_eq!(apiserver.writes(), 0);
}

#[tokio::test]
async fn an_older_runs_result_moves_and_a_newer_ones_stays() {
    let apiserver = Apiserver::default();
    for (uid, minute) in [("u1", 1), ("u3", 3), ("u2", 2)] {
        commit(&apiserver.client(), &seal(), result(uid, minute, ""), false).await.unwrap();
    }
    assert_eq!(stored_uid(&apiserver, NAME).as_deref(), Some("u3"));
    for uid in ["u1", "u2"] {
        assert_eq!(stored_uid(&apiserver, &with_uid(uid)).as_deref(), Some(uid));
    }
}

#[tokio::test]
async fn a_rejected_result_is_stored_without_its_logs() {
    let apiserver = Apiserver::default();
    apiserver.fault(0, Fault::Code(422));
    let stored = commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    assert!(stored.manifest.logs.is_none() && !stored.manifest.completeness.complete);
    assert!(stored.manifest.completeness.lost[0].starts_with("logs: "), "{:?}", stored.manifest.completeness);
}

#[tokio::test]
async fn a_quota_of_objects_does_not_cost_the_logs_of_a_result_in_one_object() {
    let apiserver = Apiserver::default();
    apiserver.fault(0, Fault::Quota);
    assert!(commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.is_err());
    let stored = commit(&apiserver.client(), &seal(), result("u1", 1, "log"), false).await.unwrap();
    assert!(stored.manifest.logs.is_some());
}

#[tokio::test]
async fn a_write_that_conflicts_is_repeated() {
    let apiserver = Apiserver::default();
    apiserver.fault(0, Fault::Code(409));
    let stored = commit(&apiserver.client(), &seal(), result("u1", 1, ""), false).await.unwrap();
    assert_eq!((stored.name.as_str(), stored.fresh), (NAME, true));
}

#[tokio::test]
async fn an_update_applies_to_the_current_version() {
    let apiserver = Apiserver::default();
    let mut packed = result("u1", 1, "");
    packed.manifest.announcements_pending = vec!["A".into(), "B".into()];
    let stored = commit(&apiserver.client(), &seal(), packed, false).await.unwrap();
    let remove = |reason: &'static str| {
        move |manifest: &mut Manifest| {
            let before = manifest.announcements_pending.len();
            manifest.announcements_pending.retain(|pending| pending != reason);
            manifest.announcements_pending.len() < before
        }
    };
    update_manifest(&apiserver.client(), &seal(), &stored, remove("A")).await.unwrap();
    // The caller has an outdated version by now.
    update_manifest(&apiserver.client(), &seal(), &stored, remove("B")).await.unwrap();
    let map = apiserver.get("configmaps", "ci", NAME).unwrap();
    let text = map["data"]["result.json"].as_str().unwrap();
    let manifest = Manifest::parse("ci", text.as_bytes()).unwrap();
    assert!(manifest.announcements_pending.is_empty());
    assert!(map["metadata"]["labels"].get("job-handler/announce").is_none_or(Value::is_null));
}
