//! Everything that ever became of Jobs and ledgers, revision by revision, from etcd itself.
//!
//! A sampled view can miss a moment with one Job too many, and a watch through the API server ends with it: its watch
//! cache begins anew and knows nothing from before (410). etcd has every revision, whatever happens above it. The API
//! server has to store JSON for this, so the cluster is started with [`STORE_JSON`].

mod etcd;
mod limit_check;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use limit_check::{LimitReport, check_limit};

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// For [`ClusterOptions::apiserver_arguments`](crate::ClusterOptions): built-in objects are stored as JSON, not protobuf.
pub const STORE_JSON: &str = "--storage-media-type=application/json";
/// Label of a Job that tells which of the wanted ones it is, whatever its name.
pub const NUMBER: &str = "e2e.job-handler.io/number";

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// etcd's revision, which is the object's `metadata.resourceVersion`.
    pub revision: u64,
    /// When it was seen here.
    pub at: Instant,
    /// ObjectChange was written.
    pub change: ObjectChange,
}

/// ObjectChange a write made of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectChange {
    /// A Job.
    Job {
        /// `namespace/name`.
        key: String,
        /// ObjectChange it counts as now.
        state: StoredJobState,
        /// The value of its label [`NUMBER`].
        number: Option<String>,
        /// `spec.managedBy`.
        managed_by: Option<String>,
    },
    /// A ledger: its name, and the attempts in it (`request.uid` -> `namespace/name` of the Job).
    Ledger(String, BTreeMap<String, String>),
}

/// ObjectChange a Job counts as. Told here once more, in the words of the documentation, so that the proof does not go by the
/// code that it is about.
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

/// A running record. It ends with this value.
#[derive(Debug)]
pub struct History {
    reader: HistoryReader,
    task: JoinHandle<()>,
}

/// Reads a [`History`].
#[derive(Clone, Debug)]
pub struct HistoryReader(Arc<HistoryLog>);

#[derive(Debug)]
struct HistoryLog {
    entries: Mutex<Vec<HistoryEntry>>,
    /// How many there are; and why there will be no more.
    length: watch::Sender<(usize, Option<String>)>,
}

impl History {
    /// Begins to record all Jobs and ledgers of a cluster, from the next write on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an existing cluster, whose etcd cannot be reached; if etcd does not answer.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let address = cluster.etcd()?;
        let from = etcd::revision(address).await? + 1;
        let shared = Arc::new(HistoryLog { entries: Mutex::default(), length: watch::Sender::default() });
        let theirs = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let ended = etcd::watch(address, from, |entry| theirs.add(entry)).await;
            let why = ended.map_or_else(|error| error.to_string(), |()| "etcd ended the watch".to_owned());
            theirs.length.send_modify(|length| length.1 = Some(why));
        });
        Ok(Self { reader: HistoryReader(shared), task })
    }

    /// A reader for another task.
    pub fn reader(&self) -> HistoryReader {
        self.reader.clone()
    }
}

impl std::ops::Deref for History {
    type Target = HistoryReader;

    fn deref(&self) -> &HistoryReader {
        &self.reader
    }
}

impl HistoryReader {
    /// The entries from the `from`th on.
    pub fn since(&self, from: usize) -> Vec<HistoryEntry> {
        self.0.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether there are none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until there are more than `length` entries.
    ///
    /// # Errors
    /// If there will be no more.
    pub async fn wait_for_more(&self, length: usize) -> Result<()> {
        let mut changes = self.0.length.subscribe();
        let changed = changes.wait_for(|(now, ended)| *now > length || ended.is_some()).await;
        let ended = match changed {
            Ok(state) if state.0 > length => return Ok(()),
            Ok(state) => state.1.clone().unwrap_or_default(),
            Err(closed) => closed.to_string(),
        };
        Err(Error::Invalid(format!("the history is broken off, nothing can be proved by it: {ended}")))
    }

    /// Waits until the entries from the `from`th on pass the test. The test says what it misses.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what was missed last; if there will be no more entries.
    pub async fn wait<T>(
        &self,
        from: usize,
        within: Duration,
        what: &str,
        test: impl Fn(&[HistoryEntry]) -> Result<T, String>,
    ) -> Result<T> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let length = self.len();
            let missed = match test(&self.since(from)) {
                Ok(found) => return Ok(found),
                Err(missed) => missed,
            };
            match tokio::time::timeout_at(until, self.wait_for_more(length)).await {
                Ok(grown) => grown?,
                Err(_) => {
                    return Err(Error::Timeout { what: what.to_owned(), waited: within, last: missed });
                }
            }
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HistoryLog {
    fn lock(&self) -> MutexGuard<'_, Vec<HistoryEntry>> {
        self.entries.lock()
    }

    fn add(&self, entry: HistoryEntry) {
        let length = {
            let mut entries = self.lock();
            entries.push(entry);
            entries.len()
        };
        self.length.send_modify(|now| now.0 = length);
    }
}

impl ObjectChange {
    /// Of an object below etcd's prefix `/registry/`, as stored; None = it is neither a Job nor a ledger.
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
    /// Of a stored Job.
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
    fn what_counts_is_told_by_the_stored_object() {
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
    fn keys_tell_jobs_and_ledgers_from_the_rest() {
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
