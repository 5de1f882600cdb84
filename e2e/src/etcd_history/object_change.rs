//! What a write made of a Job or a ledger.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

/// Label with the number of a Job, independent of its name.
pub const NUMBER: &str = "e2e.job-handler.io/number";

/// One write, as etcd has it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWrite {
    /// etcd's revision.
    pub revision: u64,
    /// The key, such as `/registry/jobs/<namespace>/<name>`.
    pub key: String,
    /// The object; `None` if it was deleted.
    pub object: Option<Value>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// etcd's revision, which is the object's `metadata.resourceVersion`.
    pub revision: u64,
    /// When we received it.
    pub at: Instant,
    /// The change.
    pub change: ObjectChange,
}

/// What a write changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange {
    /// A Job.
    Job {
        /// `namespace/name`.
        key: String,
        /// Its state after the write.
        state: StoredJobState,
        /// The value of its label [`NUMBER`].
        number: Option<String>,
        /// `spec.managedBy`.
        managed_by: Option<String>,
    },
    /// A ledger: its name, and the attempts in it (`request.uid` -> `namespace/name` of the Job).
    Ledger(String, BTreeMap<String, String>),
}

/// The state of a Job for a limit. Implemented here again, from the documentation, so that the check does not rely on
/// the code that it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredJobState {
    /// Not finished, and not (suspended without a pod that is active or terminating).
    Active,
    /// Suspended, without such pods.
    Suspended,
    /// Complete or Failed.
    Finished,
    /// Deleted.
    Gone,
}

impl ObjectChange {
    /// The change of an object with a key below `/registry/`; `None` if it is neither a Job nor a ledger.
    pub fn of(key: &str, stored: Option<&Value>) -> Option<Self> {
        if let Some(key) = key.strip_prefix("/registry/jobs/") {
            let text = |pointer: &str| Some(stored?.pointer(pointer)?.as_str()?.to_owned());
            return Some(Self::Job {
                key: key.to_owned(),
                state: stored.map_or(StoredJobState::Gone, StoredJobState::of),
                number: stored.and_then(|job| Some(job["metadata"]["labels"][NUMBER].as_str()?.to_owned())),
                managed_by: text("/spec/managedBy"),
            });
        }
        let (_, name) = key.strip_prefix("/registry/job-handler.io/jobledgers/")?.split_once('/')?;
        let pending = stored.map_or(&Value::Null, |ledger| &ledger["spec"]["pending"]);
        let attempts = pending.as_object().into_iter().flatten().flat_map(|(job, tries)| {
            tries.as_object().into_iter().flatten().map(move |(request, _)| (request.clone(), job.clone()))
        });
        Some(Self::Ledger(name.to_owned(), attempts.collect()))
    }
}

impl StoredJobState {
    /// The state of a stored Job.
    pub fn of(job: &Value) -> Self {
        let status = &job["status"];
        let ended = |condition: &Value| {
            (condition["type"] == "Complete" || condition["type"] == "Failed")
                && condition["status"] == "True"
        };
        let pods = |field: &str| status[field].as_i64().unwrap_or(0);
        if status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(ended)) {
            Self::Finished
        } else if job["spec"]["suspend"] == true && pods("active") == 0 && pods("terminating") == 0 {
            Self::Suspended
        } else {
            Self::Active
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_state_follows_from_the_stored_job() {
        let finished = json!([{"type": "Failed", "status": "True"}]);
        let finishing = json!([{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "False"}]);
        for (job, state) in [
            (json!({"spec": {"suspend": false}}), StoredJobState::Active),
            (json!({"spec": {"suspend": true}}), StoredJobState::Suspended),
            (json!({"spec": {"suspend": true}, "status": {"active": 1}}), StoredJobState::Active),
            (json!({"spec": {"suspend": true}, "status": {"terminating": 1}}), StoredJobState::Active),
            (json!({"status": {"conditions": finishing}}), StoredJobState::Active),
            (json!({"status": {"conditions": finished, "terminating": 1}}), StoredJobState::Finished),
        ] {
            assert_eq!(StoredJobState::of(&job), state, "{job}");
        }
    }

    #[test]
    fn only_jobs_and_ledgers_are_read_from_keys() {
        let job = json!({"metadata": {"labels": {NUMBER: "7"}}, "spec": {"managedBy": "a/b"}});
        let found = ObjectChange::of("/registry/jobs/ci/a", Some(&job));
        let wanted = ObjectChange::Job {
            key: "ci/a".into(),
            state: StoredJobState::Active,
            number: Some("7".into()),
            managed_by: Some("a/b".into()),
        };
        assert_eq!(found, Some(wanted));
        assert!(matches!(
            ObjectChange::of("/registry/jobs/ci/a", None),
            Some(ObjectChange::Job { state: StoredJobState::Gone, .. })
        ));
        let ledger = json!({"spec": {"pending": {"ci/a": {"r1": {}, "r2": {}}}}});
        let found =
            ObjectChange::of("/registry/job-handler.io/jobledgers/job-handler-system/ci", Some(&ledger));
        let attempts = ["r1", "r2"].map(|request| (request.to_owned(), "ci/a".to_owned()));
        assert_eq!(found, Some(ObjectChange::Ledger("ci".into(), attempts.into())));
        assert_eq!(ObjectChange::of("/registry/job-handler.io/jobpolicies/ci/a", Some(&ledger)), None);
    }
}
