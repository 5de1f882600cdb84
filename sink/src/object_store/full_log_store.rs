//! Full logs in an object store.
//!
//! All objects of a Job are in one folder, `<prefix>/<namespace>/<uid of the Job>/`, under names derived from its pods and
//! runs: a repeated harvest overwrites them. They are written before the result, which is the commit, and deleted after
//! it. The garbage collector ([`crate::retention::object_gc`]) deletes folders that no result names, so that a stop at any
//! point leaves nothing behind for good.
//!
//! An outage of the store costs a Job its full logs, never its result: calls have timeouts, uploads are limited in number,
//! and after failures in a row, calls pause.

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use job_handler_shared::{process::telemetry::Metrics, result::pods::FullLogObject};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path as Key};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::AsyncReadExt,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    config::object_store::ObjectsConfig,
    model::object_store_error,
    object_store::{Spool, circuit_breaker::CircuitBreaker, log_key::LogKey, spool::SpooledLog},
};

/// Uploads at a time; each holds [`PART_SIZE`] in memory.
const CONCURRENT_UPLOADS: usize = 4;
/// Bytes per part of an upload. S3 requires at least 5 MiB, except for the last one, and at most 10,000 parts.
const PART_SIZE: usize = 5 << 20;
/// The uploads of one Job may take this many times the timeout of a call.
const UPLOAD_TIMEOUTS: u32 = 10;
/// The store; clones share its limits.
#[derive(Clone)]
pub struct FullLogStore(pub(crate) Arc<FullLogStoreState>);

pub(crate) struct FullLogStoreState {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) base: Key,
    pub(crate) url: String,
    spool: Spool,
    timeout: Duration,
    pub(crate) gc_interval: Duration,
    uploads: Semaphore,
    breaker: CircuitBreaker,
    stored: Counter,
    failed: Counter,
    pub(crate) folders_deleted: Counter,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FullLogStoreError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// Logs cannot be spooled before their upload.
    #[error(
        "objectStore.spool.folder: {folder} cannot be written to: {source}; mount an emptyDir there, or name another \
         folder"
    )]
    Spool {
        /// Folder of the spool.
        folder: PathBuf,
        /// Error of the write.
        source: std::io::Error,
    },
}

impl fmt::Debug for FullLogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("url", &self.0.url).finish_non_exhaustive()
    }
}

impl FullLogStore {
    /// Opens the store without calling it; the first upload shows whether it answers.
    ///
    /// # Errors
    /// If the configuration is wrong, or logs cannot be spooled.
    pub fn open(config: &ObjectsConfig, replica: &str, metrics: &Metrics) -> Result<Self, FullLogStoreError> {
        let (store, base) = config.open().map_err(FullLogStoreError::Config)?;
        // Each replica has its own folder, since it empties it at the start.
        let special = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.');
        let folder = config.spool.join(format!("job-handler-spool-{}", replica.replace(special, "-")));
        let spool = Spool::open(&folder, config.spool_bytes)
            .map_err(|source| FullLogStoreError::Spool { folder: folder.clone(), source })?;
        tracing::info!(url = config.url.as_str(), "logs over their budget go to the object store");
        Ok(Self(Arc::new(FullLogStoreState {
            store,
            base,
            url: config.url.as_str().trim_end_matches('/').to_owned(),
            spool,
            timeout: config.timeout,
            gc_interval: config.gc_interval,
            uploads: Semaphore::new(CONCURRENT_UPLOADS),
            breaker: CircuitBreaker::default(),
            stored: metrics.create("job_handler_whole_logs_stored", "Full logs stored in the object store"),
            failed: metrics.create(
                "job_handler_whole_logs_failed",
                "Logs that were truncated because storing the full log failed",
            ),
            folders_deleted: metrics.create(
                "job_handler_object_folders_swept",
                "Folders deleted from the object store because no result names them",
            ),
        })))
    }

    /// Where full logs wait for their upload.
    pub(crate) fn spool(&self) -> &Spool {
        &self.0.spool
    }

    /// When uploads of a Job that start now time out.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.0.timeout * UPLOAD_TIMEOUTS
    }

    /// URL of a Job's folder.
    pub(crate) fn folder_url(&self, namespace: &str, job_uid: &str) -> String {
        format!("{}/{namespace}/{job_uid}/", self.0.url)
    }

    fn folder(&self, namespace: &str, job_uid: &str) -> Key {
        self.0.base.clone().join(namespace).join(job_uid)
    }

    /// Uploads a log; overwrites the object of an earlier attempt.
    ///
    /// # Errors
    /// The reason, for readers of the result.
    pub(crate) async fn put(
        &self,
        (namespace, job_uid): (&str, &str),
        key: LogKey<'_>,
        log: &SpooledLog,
        deadline: Instant,
    ) -> Result<FullLogObject, String> {
        let [pod, file] = key.parts();
        let path = self.folder(namespace, job_uid).join(pod.as_str()).join(file.as_str());
        let put = self.try_put(&path, log, deadline).await;
        put.inspect_err(|_| self.count_failure())?;
        self.0.stored.inc();
        let url = format!("{}{pod}/{file}", self.folder_url(namespace, job_uid));
        Ok(FullLogObject { url, bytes: log.bytes() })
    }

    /// Counts a full log that could not be stored.
    pub(crate) fn count_failure(&self) {
        self.0.failed.inc();
    }

    async fn try_put(&self, key: &Key, log: &SpooledLog, deadline: Instant) -> Result<(), String> {
        self.0.breaker.check()?;
        // Behind uploads that hang, others wait no longer than one call may take.
        let permit_deadline = deadline.min(Instant::now() + self.0.timeout);
        let permit = timeout_at(permit_deadline, self.0.uploads.acquire());
        let Ok(_permit) = permit.await else {
            return Err("the object store is slow, and other uploads were queued before".to_owned());
        };
        self.0.breaker.try_call()?;
        let mut file = tokio::fs::File::open(log.path()).await.map_err(|error| error.to_string())?;
        if log.bytes() <= PART_SIZE as u64 {
            let mut all = Vec::new();
            file.read_to_end(&mut all).await.map_err(|error| error.to_string())?;
            return self.call(self.0.store.put(key, all.into())).await.map(drop);
        }
        let mut upload = self.call(self.0.store.put_multipart(key)).await?;
        let parts = async {
            loop {
                let mut part = Vec::with_capacity(PART_SIZE);
                let mut rest = (&mut file).take(PART_SIZE as u64);
                if rest.read_to_end(&mut part).await.map_err(|error| error.to_string())? == 0 {
                    break;
                }
                self.call(upload.put_part(PutPayload::from(part))).await?;
            }
            self.call(upload.complete()).await.map(drop)
        };
        let done = timeout_at(deadline, parts).await;
        let done = done.unwrap_or_else(|_| Err("the upload timed out".to_owned()));
        if done.is_err() {
            // Remaining parts cost money, and no list shows them.
            if let Err(error) = self.with_timeout(upload.abort()).await {
                tracing::debug!(%key, "an aborted upload leaves parts behind: {error}");
            }
        }
        done
    }

    /// Deletes a Job's folder; returns the number of objects.
    ///
    /// # Errors
    /// Why some of them remain.
    pub(crate) async fn remove(&self, namespace: &str, job_uid: &str) -> Result<usize, String> {
        self.0.breaker.try_call()?;
        let keys = self.keys(namespace, job_uid).await?;
        let gone: Vec<_> = keys.iter().map(|key| self.call(self.delete(key))).collect();
        futures::stream::iter(gone).buffer_unordered(CONCURRENT_UPLOADS).try_collect::<()>().await?;
        Ok(keys.len())
    }

    /// Deletes objects of a Job that are not among `kept` (URLs): leftovers of a harvest that was not completed.
    ///
    /// # Errors
    /// Why some of them may remain.
    pub(crate) async fn remove_all_but(
        &self,
        namespace: &str,
        job_uid: &str,
        kept: &BTreeSet<String>,
    ) -> Result<(), String> {
        let folder = self.folder(namespace, job_uid);
        for key in self.keys(namespace, job_uid).await? {
            let below: Vec<_> = key.prefix_match(&folder).into_iter().flatten().collect();
            let below: Vec<&str> = below.iter().map(AsRef::as_ref).collect();
            if !kept.contains(&format!("{}{}", self.folder_url(namespace, job_uid), below.join("/"))) {
                self.call(self.delete(&key)).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> object_store::Result<()> {
        match self.0.store.delete(key).await {
            // Another process deleted it first.
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    async fn keys(&self, namespace: &str, job_uid: &str) -> Result<Vec<Key>, String> {
        let folder = self.folder(namespace, job_uid);
        self.call(self.0.store.list(Some(&folder)).map_ok(|found| found.location).try_collect()).await
    }

    /// Makes one call with a timeout and records its outcome.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, String> {
        let outcome = self.with_timeout(call).await;
        self.0.breaker.record(&outcome);
        outcome
    }

    async fn with_timeout<T>(
        &self,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, String> {
        // The client's own timeout comes first and explains more; folders have no client.
        let limit = self.0.timeout * 2;
        match timeout(limit, call).await {
            Ok(done) => done.map_err(|error| object_store_error::describe(&error)),
            Err(_) => Err(format!("the object store did not answer within {} s", limit.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::{
        config::Config,
        object_store::{
            FullLog,
            circuit_breaker::{FAILURES, PAUSE},
        },
    };

    fn objects(folder: &std::path::Path) -> FullLogStore {
        let at = folder.join("store");
        std::fs::create_dir_all(&at).unwrap();
        let text = format!(
            "objectStore: {{url: 'file://{}/', spool: {{folder: '{}'}}, timeoutSeconds: 1}}",
            at.display(),
            folder.join("spool").display()
        );
        let config = Config::parse(&text, folder).unwrap();
        FullLogStore::open(&config.objects.unwrap(), "sink-0", &Metrics::default()).unwrap()
    }

    fn run<'a>(pod: &'a str, container: &'a str, run: &'a str) -> LogKey<'a> {
        LogKey { pod, container, previous: false, run_id: run }
    }

    async fn put(objects: &FullLogStore, uid: &str, key: LogKey<'_>, log: &[u8]) -> FullLogObject {
        let FullLog::Spooled(log) = objects.spool().spool(log).await else { panic!("not spooled") };
        objects.put(("ci", uid), key, &log, objects.deadline()).await.unwrap()
    }

    fn unzipped(url: &str) -> Vec<u8> {
        let file = std::fs::File::open(url.strip_prefix("file://").unwrap()).unwrap();
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn a_log_of_many_parts_is_stored_and_deleted_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path());
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..2 * PART_SIZE + 100).map(|_| next()).collect();
        let large = put(&objects, "uid-1", run("a-x", "main", "containerd://1"), &noise).await;
        assert!(large.url.ends_with(".log.gz") && large.bytes > 2 * PART_SIZE as u64, "{large:?}");
        assert!(unzipped(&large.url) == noise);
        // The second upload overwrites it.
        let again = put(&objects, "uid-1", run("a-x", "main", "containerd://1"), b"less").await;
        assert_eq!((again.url.as_str(), unzipped(&again.url)), (large.url.as_str(), b"less".to_vec()));
        let other = put(&objects, "uid-1", run("a-x", "main", "containerd://2"), b"other").await;
        let stranger = put(&objects, "uid-2", run("a-x", "main", "containerd://1"), b"stranger").await;
        assert_eq!(BTreeSet::from([&again.url, &other.url, &stranger.url]).len(), 3);

        objects.remove_all_but("ci", "uid-1", &[other.url.clone()].into()).await.unwrap();
        assert!(!std::fs::exists(again.url.strip_prefix("file://").unwrap()).unwrap());
        assert_eq!(objects.remove("ci", "uid-1").await, Ok(1));
        assert_eq!(objects.remove("ci", "uid-1").await, Ok(0), "nothing is left");
        assert_eq!(unzipped(&stranger.url), b"stranger");
    }

    #[tokio::test]
    async fn a_failing_store_is_paused_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path());
        let store = folder.path().join("store");
        std::fs::remove_dir(&store).unwrap();
        std::fs::write(&store, "no folder any more").unwrap();
        let FullLog::Spooled(log) = objects.spool().spool(b"log").await else { panic!("not spooled") };
        let put = || objects.put(("ci", "u"), run("a", "b", "c"), &log, objects.deadline());
        for _ in 0..FAILURES {
            let why = put().await.unwrap_err();
            assert!(!why.contains("paused"), "{why}");
        }
        let why = put().await.unwrap_err();
        assert!(why.contains("paused"), "{why}");
        std::fs::remove_file(&store).unwrap();
        std::fs::create_dir(&store).unwrap();
        tokio::time::pause();
        tokio::time::advance(PAUSE).await;
        tokio::time::resume();
        assert!(put().await.is_ok());
    }

    /// The server accepts connections and never answers.
    #[tokio::test]
    async fn uploads_to_a_store_that_hangs_time_out() {
        let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "objectStore: {{url: 's3://logs', timeoutSeconds: 1, spool: {{folder: '{}'}}, options: {{region: x, \
             endpoint: 'http://{}', allow_http: true, skip_signature: true}}}}",
            folder.path().display(),
            listener.local_addr().unwrap()
        );
        let config = Config::parse(&text, folder.path()).unwrap().objects.unwrap();
        let objects = FullLogStore::open(&config, "../../sink", &Metrics::default()).unwrap();
        assert!(objects.spool().folder().starts_with(folder.path()), "below its folder");
        let FullLog::Spooled(log) = objects.spool().spool(b"log").await else { panic!("not spooled") };
        let all: Vec<_> = (0..3 * CONCURRENT_UPLOADS)
            .map(|n| {
                let (objects, log) = (objects.clone(), log.clone());
                async move {
                    let name = n.to_string();
                    objects
                        .put(("ci", "u"), run("a", "b", &name), &log, objects.deadline())
                        .await
                        .unwrap_err()
                }
            })
            .collect();
        let mut reasons = futures::future::join_all(all).await;
        reasons.sort();
        // Uploads queued behind those that hang do not wait as long again.
        assert!(reasons.iter().any(|why| why.contains("slow") || why.contains("paused")), "{reasons:?}");
        assert_eq!(objects.0.failed.get(), 3 * CONCURRENT_UPLOADS as u64);
        assert!(objects.remove("ci", "u").await.unwrap_err().contains("paused"));
    }
}
