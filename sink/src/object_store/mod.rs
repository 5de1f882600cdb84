//! Whole logs in an object store, where the operator has named one: what is over the budget of a result goes there
//! instead of being lost, and the result says where.
//!
//! Everything of a Job is in one folder, `<prefix>/<namespace>/<uid of the Job>/`, under names that follow from its pods
//! and runs: a harvest that is run again writes the same objects over. They are there before the result is, which is the
//! commit; they go after it did; and a folder of which no result tells is swept ([`broom`]). So a stop at any point
//! leaves nothing behind for ever.
//!
//! A store that is away costs a Job its whole logs, never its result: calls are bounded in time, uploads in number, and
//! after failures in a row the store is left alone for a moment.

mod spool;

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use job_handler_shared::{
    process::{error_chain::error_chain, telemetry::Metrics},
    result::pods::WholeLog,
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path as Key};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use sha2::{Digest, Sha256};
use tokio::{
    io::AsyncReadExt,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use crate::config::object_store::ObjectsConfig;

pub use spool::{Overflow, Spool, Spooled, Whole};

/// Uploads at a time: so often [`PART`] is in memory.
const UPLOADS: usize = 4;
/// Bytes per call of an upload; S3 takes no less than 5 MiB but for the last one, and at most 10,000 of them.
const PART: usize = 5 << 20;
/// Failures in a row, after which the store is left alone …
const FAILURES: u32 = 2;
/// … for this long.
const PAUSE: Duration = Duration::from_secs(15);
/// The uploads of one Job may take so many times the bound of a call.
const PATIENCE: u32 = 10;
/// Longest reason that is passed on, characters.
const REASON_MAX: usize = 300;

/// The store; clones are the same one.
#[derive(Clone)]
pub struct Objects(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) base: Key,
    pub(crate) url: String,
    spool: Spool,
    timeout: Duration,
    pub(crate) sweep: Duration,
    uploads: Semaphore,
    health: Mutex<Health>,
    stored: Counter,
    failed: Counter,
    pub(crate) swept: Counter,
}

#[derive(Default)]
struct Health {
    failures: u32,
    last: Option<Instant>,
    why: String,
}

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// There is no place for logs on their way.
    #[error(
        "objectStore.spool.folder: {folder} cannot be written to: {source}; mount an emptyDir there, or name another \
         folder"
    )]
    Spool {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// One run of one container of a Job's pod.
#[derive(Clone, Copy, Debug)]
pub struct RunKey<'a> {
    /// Pod.
    pub pod: &'a str,
    /// Container.
    pub container: &'a str,
    /// The run before the last restart.
    pub previous: bool,
    /// The runtime's name for the run.
    pub run: &'a str,
}

impl RunKey<'_> {
    /// Its object's name below the Job's folder: readable, and never that of another run. Which run is told by a digest:
    /// restarts are counted differently while a container waits to be started again.
    fn parts(&self) -> [String; 2] {
        let digest = Sha256::digest(format!("{} {}", self.run, self.previous));
        let run: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        [self.pod.to_owned(), format!("{}-{run}.log.gz", self.container)]
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("url", &self.0.url).finish_non_exhaustive()
    }
}

impl Objects {
    /// Opens the store without calling it: whether it answers is seen with the first log.
    ///
    /// # Errors
    /// Where the configuration is wrong, or logs cannot be spooled.
    pub fn open(config: &ObjectsConfig, replica: &str, metrics: &Metrics) -> Result<Self, ObjectsError> {
        let (store, base) = config.open().map_err(ObjectsError::Config)?;
        // Of each replica by itself, and by a name that nobody else has: it is emptied at the start.
        let strange = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.');
        let folder = config.spool.join(format!("job-handler-spool-{}", replica.replace(strange, "-")));
        let spool = Spool::open(&folder, config.spool_bytes)
            .map_err(|source| ObjectsError::Spool { folder: folder.clone(), source })?;
        let (stored, failed, swept) = <(Counter, Counter, Counter)>::default();
        metrics.register(|registry| {
            let ours = registry.sub_registry_with_prefix("job_handler");
            ours.register("whole_logs_stored", "Logs stored whole in the object store", stored.clone());
            ours.register("whole_logs_failed", "Logs that were cut since that failed", failed.clone());
            ours.register("object_folders_swept", "Folders of which no result told", swept.clone());
        });
        tracing::info!(url = config.url.as_str(), "logs over their budget go to the object store");
        Ok(Self(Arc::new(Shared {
            store,
            base,
            url: config.url.as_str().trim_end_matches('/').to_owned(),
            spool,
            timeout: config.timeout,
            sweep: config.sweep,
            uploads: Semaphore::new(UPLOADS),
            health: Mutex::default(),
            stored,
            failed,
            swept,
        })))
    }

    /// Where logs are gathered.
    pub fn spool(&self) -> &Spool {
        &self.0.spool
    }

    /// Until when a Job's uploads that begin now have to be done.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.0.timeout * PATIENCE
    }

    /// The address of a Job's folder.
    pub fn folder_url(&self, namespace: &str, job_uid: &str) -> String {
        format!("{}/{namespace}/{job_uid}/", self.0.url)
    }

    fn folder(&self, namespace: &str, job_uid: &str) -> Key {
        self.0.base.clone().join(namespace).join(job_uid)
    }

    /// Uploads a log; writes over what is there of an earlier try.
    ///
    /// # Errors
    /// Tells why it is not stored, to whoever reads the result.
    pub async fn put(
        &self,
        (namespace, job_uid): (&str, &str),
        run: RunKey<'_>,
        log: &Spooled,
        deadline: Instant,
    ) -> Result<WholeLog, String> {
        let [pod, file] = run.parts();
        let key = self.folder(namespace, job_uid).join(pod.as_str()).join(file.as_str());
        let put = self.try_put(&key, log, deadline).await;
        put.inspect_err(|_| self.not_stored())?;
        self.0.stored.inc();
        let url = format!("{}{pod}/{file}", self.folder_url(namespace, job_uid));
        Ok(WholeLog { url, bytes: log.bytes() })
    }

    /// Counts a log that is not stored whole.
    pub fn not_stored(&self) {
        self.0.failed.inc();
    }

    async fn try_put(&self, key: &Key, log: &Spooled, deadline: Instant) -> Result<(), String> {
        self.rested(&self.health())?;
        // Who is in line behind uploads that hang waits no longer than one call may take.
        let patience = deadline.min(Instant::now() + self.0.timeout);
        let permit = timeout_at(patience, self.0.uploads.acquire());
        let Ok(_permit) = permit.await else {
            return Err("the object store is slow, and others were in line before".to_owned());
        };
        self.well()?;
        let mut file = tokio::fs::File::open(log.path()).await.map_err(|error| error.to_string())?;
        if log.bytes() <= PART as u64 {
            let mut all = Vec::new();
            file.read_to_end(&mut all).await.map_err(|error| error.to_string())?;
            return self.call(self.0.store.put(key, all.into())).await.map(drop);
        }
        let mut upload = self.call(self.0.store.put_multipart(key)).await?;
        let parts = async {
            loop {
                let mut part = Vec::with_capacity(PART);
                let mut rest = (&mut file).take(PART as u64);
                if rest.read_to_end(&mut part).await.map_err(|error| error.to_string())? == 0 {
                    break;
                }
                self.call(upload.put_part(PutPayload::from(part))).await?;
            }
            self.call(upload.complete()).await.map(drop)
        };
        let done = timeout_at(deadline, parts).await;
        let done = done.unwrap_or_else(|_| Err("the upload took too long".to_owned()));
        if done.is_err() {
            // What is left of it costs money, and no list shows it.
            if let Err(error) = self.bounded(upload.abort()).await {
                tracing::debug!(%key, "parts of an upload stay: {error}");
            }
        }
        done
    }

    /// Removes a Job's folder; gives how many objects there were.
    ///
    /// # Errors
    /// Tells why some of them are still there.
    pub async fn remove(&self, namespace: &str, job_uid: &str) -> Result<usize, String> {
        self.well()?;
        let keys = self.keys(namespace, job_uid).await?;
        let gone: Vec<_> = keys.iter().map(|key| self.call(self.delete(key))).collect();
        futures::stream::iter(gone).buffer_unordered(UPLOADS).try_collect::<()>().await?;
        Ok(keys.len())
    }

    /// Removes what is in a Job's folder besides `kept`, which are addresses: objects of a harvest that was not finished.
    ///
    /// # Errors
    /// Tells why something may still be there.
    pub async fn tidy(&self, namespace: &str, job_uid: &str, kept: &BTreeSet<String>) -> Result<(), String> {
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
            // Somebody else was faster.
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    async fn keys(&self, namespace: &str, job_uid: &str) -> Result<Vec<Key>, String> {
        let folder = self.folder(namespace, job_uid);
        self.call(self.0.store.list(Some(&folder)).map_ok(|found| found.location).try_collect()).await
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Every change is one assignment.
        self.0.health.lock()
    }

    fn rested(&self, health: &Health) -> Result<(), String> {
        let resting = health.last.is_some_and(|last| last.elapsed() < PAUSE);
        if health.failures >= FAILURES && resting {
            return Err(format!("the object store is left alone for a moment after: {}", health.why));
        }
        Ok(())
    }

    /// Whether the store is to be called now; after a pause, one call tries it for all.
    fn well(&self) -> Result<(), String> {
        let mut health = self.health();
        self.rested(&health)?;
        if health.failures >= FAILURES {
            health.last = Some(Instant::now());
        }
        Ok(())
    }

    /// One call: bounded in time, and remembered by how it went.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, String> {
        let done = self.bounded(call).await;
        let mut health = self.health();
        match &done {
            Ok(_) => *health = Health::default(),
            Err(why) => {
                health.failures = health.failures.saturating_add(1);
                (health.last, health.why) = (Some(Instant::now()), why.clone());
            }
        }
        done
    }

    async fn bounded<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> Result<T, String> {
        // Its own client gives up before, with a better word; folders have no client.
        let limit = self.0.timeout * 2;
        match timeout(limit, call).await {
            Ok(done) => done.map_err(|error| told(&error)),
            Err(_) => Err(format!("the object store gave no answer within {} s", limit.as_secs())),
        }
    }
}

/// What an error of the store says, without what has no place in a result: signatures in addresses, and pages of XML.
pub(crate) fn told(error: &object_store::Error) -> String {
    let mut text = error_chain(error);
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.to_owned())
    };
    if let Some(code) = tag("Code") {
        text = format!("the store answered {code}: {}", tag("Message").unwrap_or_default());
    }
    let mut told = String::new();
    let mut hidden = false;
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        hidden = hidden && !matches!(c, ' ' | '"' | '\'' | ')' | '>');
        if !hidden {
            told.push(c);
        }
        if c == '?' && !hidden {
            told.push('…');
            hidden = true;
        }
    }
    told.chars().take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    pub(super) fn objects(folder: &std::path::Path) -> Objects {
        let at = folder.join("store");
        std::fs::create_dir_all(&at).unwrap();
        let text = format!(
            "objectStore: {{url: 'file://{}/', spool: {{folder: '{}'}}, timeoutSeconds: 1}}",
            at.display(),
            folder.join("spool").display()
        );
        let config = Config::parse(&text, folder).unwrap();
        Objects::open(&config.objects.unwrap(), "sink-0", &Metrics::default()).unwrap()
    }

    fn run<'a>(pod: &'a str, container: &'a str, run: &'a str) -> RunKey<'a> {
        RunKey { pod, container, previous: false, run }
    }

    async fn put(objects: &Objects, uid: &str, key: RunKey<'_>, log: &[u8]) -> WholeLog {
        let Whole::Spooled(log) = objects.spool().take(log).await else { panic!("not spooled") };
        objects.put(("ci", uid), key, &log, objects.deadline()).await.unwrap()
    }

    fn unzipped(url: &str) -> Vec<u8> {
        let file = std::fs::File::open(url.strip_prefix("file://").unwrap()).unwrap();
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn a_log_of_many_parts_comes_back_and_goes_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path());
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..2 * PART + 100).map(|_| next()).collect();
        let large = put(&objects, "uid-1", run("a-x", "main", "containerd://1"), &noise).await;
        assert!(large.url.ends_with(".log.gz") && large.bytes > 2 * PART as u64, "{large:?}");
        assert!(unzipped(&large.url) == noise);
        // Once more: over it.
        let again = put(&objects, "uid-1", run("a-x", "main", "containerd://1"), b"less").await;
        assert_eq!((again.url.as_str(), unzipped(&again.url)), (large.url.as_str(), b"less".to_vec()));
        let other = put(&objects, "uid-1", run("a-x", "main", "containerd://2"), b"other").await;
        let stranger = put(&objects, "uid-2", run("a-x", "main", "containerd://1"), b"stranger").await;
        assert_eq!(BTreeSet::from([&again.url, &other.url, &stranger.url]).len(), 3);

        objects.tidy("ci", "uid-1", &[other.url.clone()].into()).await.unwrap();
        assert!(!std::fs::exists(again.url.strip_prefix("file://").unwrap()).unwrap());
        assert_eq!(objects.remove("ci", "uid-1").await, Ok(1));
        assert_eq!(objects.remove("ci", "uid-1").await, Ok(0), "gone is gone");
        assert_eq!(unzipped(&stranger.url), b"stranger");
    }

    #[tokio::test]
    async fn a_store_that_fails_is_left_alone_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let objects = objects(folder.path());
        let store = folder.path().join("store");
        std::fs::remove_dir(&store).unwrap();
        std::fs::write(&store, "no folder any more").unwrap();
        let Whole::Spooled(log) = objects.spool().take(b"log").await else { panic!("not spooled") };
        let put = || objects.put(("ci", "u"), run("a", "b", "c"), &log, objects.deadline());
        for _ in 0..FAILURES {
            let why = put().await.unwrap_err();
            assert!(!why.contains("left alone"), "{why}");
        }
        let why = put().await.unwrap_err();
        assert!(why.contains("left alone"), "{why}");
        std::fs::remove_file(&store).unwrap();
        std::fs::create_dir(&store).unwrap();
        tokio::time::pause();
        tokio::time::advance(PAUSE).await;
        tokio::time::resume();
        assert!(put().await.is_ok());
    }

    /// A server that takes connections and never says a word.
    #[tokio::test]
    async fn a_store_that_hangs_is_given_up() {
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
        let objects = Objects::open(&config, "../../sink", &Metrics::default()).unwrap();
        assert!(objects.spool().folder().starts_with(folder.path()), "below its folder");
        let Whole::Spooled(log) = objects.spool().take(b"log").await else { panic!("not spooled") };
        let all: Vec<_> = (0..3 * UPLOADS)
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
        let mut told = futures::future::join_all(all).await;
        told.sort();
        // Those that were in line behind the ones that hung are not held up by as much again.
        assert!(told.iter().any(|why| why.contains("slow") || why.contains("left alone")), "{told:?}");
        assert_eq!(objects.0.failed.get(), 3 * UPLOADS as u64);
        assert!(objects.remove("ci", "u").await.unwrap_err().contains("left alone"));
    }

    #[test]
    fn an_error_shows_no_signature() {
        let error = |text: &str| object_store::Error::Generic { store: "X", source: text.to_owned().into() };
        for (text, expected, hidden) in [
            ("for url (https://a.example/b?sig=hunter2) it broke", "it broke", "hunter2"),
            (
                "403: <Error><Code>Denied</Code><Message>not you</Message><Key>hunter2</Key>",
                "Denied: not you",
                "hunter2",
            ),
            (&"long ".repeat(200), "long", &"long ".repeat(100)),
        ] {
            let told = told(&error(text));
            assert!(told.contains(expected) && !told.contains(hidden), "{told}");
        }
    }

    proptest! {
        /// No two runs have one object, and none is outside of its Job's folder.
        #[test]
        fn each_run_has_a_name_of_its_own(
            one in ("[a-z0-9.-]{1,9}", "[a-z0-9-]{1,5}", any::<bool>(), "[a-z:/0-9]{0,9}"),
            two in ("[a-z0-9.-]{1,9}", "[a-z0-9-]{1,5}", any::<bool>(), "[a-z:/0-9]{0,9}"),
        ) {
            let key = |(pod, container, previous, run): &(String, String, bool, String)| {
                RunKey { pod, container, previous: *previous, run }.parts()
            };
            prop_assert_eq!(key(&one) == key(&two), one == two);
            prop_assert!(key(&one).iter().all(|part| !part.contains('/')));
        }
    }
}
