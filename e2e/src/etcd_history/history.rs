//! Records every write while a test runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::etcd_history::etcd;
use crate::etcd_history::object_change::{HistoryEntry, ObjectChange, StoredWrite};
use crate::harness::error::{Error, Result};

/// For [`ClusterOptions::apiserver_arguments`](crate::ClusterOptions): the API server stores built-in objects as JSON,
/// not protobuf.
pub const STORE_JSON: &str = "--storage-media-type=application/json";

/// Why there are no more writes after etcd ended the stream.
const ENDED: &str = "etcd ended the watch";

/// A running recording. It ends when it is dropped.
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
    /// The number of entries, and why there will be no more.
    length: watch::Sender<(usize, Option<String>)>,
}

/// Calls `on_write` for every write of a Job or a ledger since the cluster started, in order of revision, and keeps
/// none: for runs whose history is too long for memory. It only returns if it cannot go on.
pub async fn follow_writes(address: SocketAddr, on_write: impl FnMut(StoredWrite)) -> Error {
    match etcd::watch(address, 1, on_write).await {
        Ok(()) => Error::Invalid(ENDED.to_owned()),
        Err(error) => error,
    }
}

impl History {
    /// Starts to record all Jobs and ledgers of a cluster, from the next write on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an existing cluster; or if etcd does not answer.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let address = cluster.etcd()?;
        let from = etcd::revision(address).await? + 1;
        let shared = Arc::new(HistoryLog { entries: Mutex::default(), length: watch::Sender::default() });
        let theirs = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let ended = etcd::watch(address, from, |write| theirs.add(write)).await;
            let why = ended.map_or_else(|error| error.to_string(), |()| ENDED.to_owned());
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
    /// The entries from index `from` on.
    pub fn since(&self, from: usize) -> Vec<HistoryEntry> {
        self.0.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether there is no entry yet.
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
        Err(Error::Invalid(format!("the history is incomplete: {ended}")))
    }

    /// Waits until the entries from index `from` on pass the test. The test returns what is missing.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what was missing last; or if there will be no more entries.
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

    fn add(&self, write: StoredWrite) {
        let Some(change) = ObjectChange::of(&write.key, write.object.as_ref()) else { return };
        let entry = HistoryEntry { revision: write.revision, at: Instant::now(), change };
        let length = {
            let mut entries = self.lock();
            entries.push(entry);
            entries.len()
        };
        self.length.send_modify(|now| now.0 = length);
    }
}
