use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use futures::stream::BoxStream;
use http::{Request, Response};
use job_handler_shared::{keys, testing::apiserver::Apiserver, webhook_address};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::{
    ca::{self, CertificateAuthority},
    leaf::Leaf,
    review_path::{LeakSign, PathKey, PathNumbers},
};

/// Issues leaves from a CA in memory; reports no changes.
struct MemorySource {
    ca: CertificateAuthority,
    leaf: Option<Leaf>,
    bundle: Option<String>,
    path_key: PathKey,
}

impl MemorySource {
    fn new() -> Self {
        let now = OffsetDateTime::from_unix_timestamp(START).unwrap();
        let secret = ca::new_secret("ns", "ca", None, now).unwrap();
        let ca = CertificateAuthority::from_secret(&secret, now).unwrap();
        Self { ca, leaf: None, bundle: None, path_key: PathKey::derived_from(b"key") }
    }
}

impl CertificateSource for MemorySource {
    async fn load(&mut self, now: OffsetDateTime) -> Result<LoadedCertificate, SourceError> {
        let names = ServerNames::of_service("s", "ns", &[])?;
        let leaf = match self.leaf.take().filter(|leaf| !leaf.is_due(now)) {
            Some(leaf) => leaf,
            None => Leaf::issue(&self.ca, &names, now)?,
        };
        self.leaf = Some(leaf.clone());
        let (bundle, path_key) = (self.bundle.clone(), self.path_key.clone());
        Ok(LoadedCertificate { leaf, issuer: None, bundle, path_key })
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    fn is_due(&self, now: OffsetDateTime) -> bool {
        self.leaf.as_ref().is_none_or(|leaf| leaf.is_due(now))
    }
}

const DAY: i64 = 24 * 3600;
const START: i64 = 1_790_000_000;

/// A running manager whose wall clock the test moves.
struct SuspendedMachine {
    wall: Arc<AtomicI64>,
    current: CurrentLeaf,
    paths: ReviewPaths,
    task: JoinHandle<()>,
}

impl Drop for SuspendedMachine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SuspendedMachine {
    async fn start() -> Self {
        let wall = Arc::new(AtomicI64::new(START));
        let reads = wall.clone();
        let clock = move || OffsetDateTime::from_unix_timestamp(reads.load(Ordering::SeqCst)).unwrap();
        let source = MemorySource::new();
        // An apiserver that never responds.
        let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let publisher = Publisher::new(Client::new(service, "default"), "c");
        let current = CurrentLeaf::default();
        let rotation = PathRotation::new(Duration::from_secs(300));
        let manager = CertificateManager::new(source, publisher, rotation, current.clone(), clock);
        let (mut published, paths) = (manager.published.subscribe(), manager.paths.clone());
        let task = tokio::spawn(manager.run());
        published.wait_for(|published| *published).await.unwrap();
        Self { wall, current, paths, task }
    }

    fn serial(&self) -> CertificateDer<'static> {
        self.current.certified_key().unwrap().cert[0].clone()
    }
}

/// Timers stop while a machine is suspended; the wall clock does not.
#[tokio::test(start_paused = true)]
async fn a_machine_that_was_suspended_for_weeks_renews_within_a_minute() {
    let machine = SuspendedMachine::start().await;
    let first = machine.serial();
    // After a day, the leaf is not due.
    machine.wall.store(START + DAY, Ordering::SeqCst);
    tokio::time::sleep(CLOCK_CHECK_INTERVAL * 2).await;
    assert_eq!(machine.serial(), first);
    // After three weeks, it is.
    machine.wall.store(START + 22 * DAY, Ordering::SeqCst);
    tokio::time::sleep(CLOCK_CHECK_INTERVAL + Duration::from_secs(1)).await;
    assert_ne!(machine.serial(), first);
}

#[tokio::test(start_paused = true)]
async fn suspicions_do_not_put_off_the_look_at_the_clock() {
    let machine = SuspendedMachine::start().await;
    let first = machine.serial();
    machine.wall.store(START + 22 * DAY, Ordering::SeqCst);
    for _ in 0..7 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        machine.paths.suspect_leak(LeakSign::OverdueAttempts);
    }
    assert_ne!(machine.serial(), first);
}

const MUTATING: &str = "mutatingwebhookconfigurations";

/// The path of reviews in the MutatingWebhookConfiguration.
fn published_path(server: &Apiserver) -> String {
    let configuration = server.get(MUTATING, "", keys::MUTATING_CONFIGURATION).unwrap();
    configuration["webhooks"][0]["clientConfig"]["service"]["path"].as_str().unwrap().to_owned()
}

/// A configuration with one webhook.
fn configuration(name: &str, path: &str) -> Value {
    let client = json!({"service": {"name": "job-handler", "namespace": "ns", "path": path}});
    let webhook = json!({"name": "w.example", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": client});
    json!({"metadata": {"name": name}, "webhooks": [webhook]})
}

/// Who has the key of a CA that was replaced can make secrets with any number.
#[tokio::test(start_paused = true)]
async fn the_key_of_the_previous_ca_makes_no_valid_paths_once_the_sink_has_copied_one_of_the_current() {
    let server = Apiserver::default();
    server.put(MUTATING, configuration(keys::MUTATING_CONFIGURATION, "/mutate"));
    let copy_to_limits = || {
        let path = webhook_address::with_endpoint(&published_path(&server), keys::VALIDATE_PATH);
        server.put("validatingwebhookconfigurations", configuration("job-handler-limits", &path));
    };
    let mut source = MemorySource::new();
    source.bundle = Some("ca".to_owned());
    let forged = source.path_key.secret(PathNumbers { number: 1 << 40, oldest: 0 });
    let publisher = Publisher::new(server.client(), keys::MUTATING_CONFIGURATION);
    let clock = || OffsetDateTime::from_unix_timestamp(START).unwrap();
    // It needs no replacement of paths.
    let rotation = PathRotation::new(Duration::ZERO);
    let mut manager = CertificateManager::new(source, publisher, rotation, CurrentLeaf::default(), clock);
    manager.reconcile().await.unwrap();
    copy_to_limits();

    manager.source.path_key = PathKey::derived_from(b"key of a new CA");
    for _ in 0..3 {
        manager.reconcile().await.unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(manager.paths.accepts(&forged), "the sink is away");
    }
    copy_to_limits();
    manager.reconcile().await.unwrap();
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(!manager.paths.accepts(&forged));
    assert!(manager.paths.accepts(webhook_address::secret(&published_path(&server)).unwrap()));
}
