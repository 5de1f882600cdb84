//! Jobs and ledgers in an in-memory apiserver, and replicas that decide about them.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{parsed::Policy, reference::Labels, set::PolicySet},
    process::{admin::Readiness, telemetry::Metrics},
    testing::apiserver,
};
use job_handler_webhook::{
    cache::policies::Policies,
    ledger::{
        attempt_age::Clock,
        limiter::{LedgerLimiter, limiter},
    },
    limit::{Attempt, EarlierSlots, Verdict},
    metrics::WebhookMetrics,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LEDGERS: &str = "jobledgers";
const NAMESPACE: &str = "system";
/// The longest wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// An apiserver with Jobs and ledgers.
#[derive(Default)]
pub struct LimitsApiserver(apiserver::Apiserver);

impl Deref for LimitsApiserver {
    type Target = apiserver::Apiserver;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl LimitsApiserver {
    /// Each call takes `latency` milliseconds, and watches lag, so that a test has to wait for what it relies on.
    pub fn new(latency: u64) -> Self {
        let apiserver = apiserver::Apiserver::default().with_watch_lag(Duration::from_millis(5));
        Self(apiserver.with_latency(Duration::from_millis(latency)))
    }

    /// One of `every` writes of ledgers takes effect and loses its response.
    pub fn losing(self, every: usize) -> Self {
        Self(self.0.with_lost_responses(every))
    }

    /// A page of a LIST has at most `size` Jobs.
    pub fn paged(self, size: usize) -> Self {
        Self(self.0.with_page(size))
    }

    /// Adds a ledger that was created before.
    pub fn with_ledger(self, name: &str, spec: Value) -> Self {
        self.put_ledger(name, spec);
        self
    }

    /// Writes a ledger, as a user may do by hand.
    pub fn put_ledger(&self, name: &str, spec: Value) {
        let ledger = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        self.put(LEDGERS, ledger);
    }

    /// Deletes a ledger, as a user may do by hand.
    pub fn delete_ledger(&self, name: &str) {
        self.remove(LEDGERS, NAMESPACE, name);
    }

    pub fn ledger(&self, name: &str) -> Value {
        self.get(LEDGERS, NAMESPACE, name).unwrap()
    }

    /// The names of all ledgers.
    pub fn ledgers(&self) -> Vec<String> {
        self.all(LEDGERS)
            .iter()
            .map(|ledger| ledger["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn pending(&self, name: &str) -> usize {
        let ledger = self.ledger(name);
        let pending = ledger["spec"]["pending"].as_object();
        pending.map_or(0, |names| names.values().map(|attempts| attempts.as_object().unwrap().len()).sum())
    }

    /// Writes of ledgers that took effect.
    pub fn ledger_writes(&self) -> usize {
        self.replaced(LEDGERS)
    }

    pub fn job(&self, key: &str) -> Option<Value> {
        let (namespace, name) = key.split_once('/').unwrap();
        self.get("jobs", namespace, name)
    }

    /// Writes a Job, as the apiserver does after admission. Returns false if the name is in use.
    pub fn store(&self, key: &str, uid: &str) -> bool {
        let (namespace, name) = key.split_once('/').unwrap();
        if self.job(key).is_some() {
            return false;
        }
        let metadata = json!({"name": name, "namespace": namespace, "uid": uid});
        self.put("jobs", json!({"metadata": metadata, "spec": {"template": {}}}));
        true
    }

    pub fn change_job(&self, key: &str, change: impl FnOnce(&mut Value)) {
        let (namespace, name) = key.split_once('/').unwrap();
        self.change("jobs", namespace, name, change);
    }

    pub fn finish(&self, key: &str) {
        let conditions = json!([{"type": "Complete", "status": "True"}]);
        self.change_job(key, |job| job["status"] = json!({"conditions": conditions}));
    }

    pub fn delete_job(&self, key: &str) {
        let (namespace, name) = key.split_once('/').unwrap();
        self.remove("jobs", namespace, name);
    }

    /// Consistent lists of Jobs (their first pages).
    pub fn job_lists(&self) -> usize {
        self.lists("jobs")
    }

    /// Reads of single Jobs.
    pub fn job_gets(&self) -> usize {
        self.gets("jobs")
    }

    pub fn active(&self) -> usize {
        self.all("jobs").iter().filter(|job| is_active(job)).count()
    }

    /// The most Jobs that were active at any time.
    pub fn most_active(&self) -> usize {
        let mut active: BTreeMap<String, bool> = BTreeMap::new();
        let counts = self.events("jobs", 0, u64::MAX).into_iter().map(|(_, event)| {
            let job = &event["object"];
            let key = format!("{}/{}", job["metadata"]["namespace"], job["metadata"]["name"]);
            active.insert(key, event["type"] != "DELETED" && is_active(job));
            active.values().filter(|active| **active).count()
        });
        counts.max().unwrap_or_default()
    }
}

fn is_active(job: &Value) -> bool {
    job["status"]["conditions"].is_null() && job["spec"]["suspend"].as_bool() != Some(true)
}

/// A running replica. Dropping it stops it at once, like a crash.
pub struct TestReplica {
    pub limiter: LedgerLimiter,
    pub clock: Clock,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub policies: Policies,
    task: JoinHandle<()>,
}

impl Drop for TestReplica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestReplica {
    /// Waits until all lists are complete.
    pub async fn ready(self) -> Self {
        eventually("the replica to be ready", || self.readiness.not_ready().is_empty()).await;
        self
    }

    /// Waits until the watch has delivered all changes of Jobs.
    ///
    /// A grant uses the watched Jobs alone, so a test that writes Jobs without a grant and expects a refusal needs this.
    pub async fn watched(&self, apiserver: &LimitsApiserver) {
        let last = apiserver.events("jobs", 0, u64::MAX).last().map_or(0, |(version, _)| *version);
        let context = self.limiter.context();
        assert!(context.cache.wait_for(last, PATIENCE).await, "the watch does not deliver all Jobs");
    }

    pub fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.encode().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_default()
    }
}

pub fn replica(apiserver: &Arc<LimitsApiserver>, policies: &[Arc<Policy>]) -> TestReplica {
    let (metrics, clock, readiness) = (Metrics::default(), Clock::default(), Readiness::default());
    let ours = WebhookMetrics::new(&metrics);
    let namespaces = ["ci", "qa"].map(|name| (name.to_owned(), Labels::new()));
    let policies = Policies::fixed(PolicySet::new(policies.iter().cloned()), namespaces);
    let (limiter, ledgers) = limiter(apiserver.client(), "system", policies.clone(), ours, clock.clone());
    let run = ledgers.run(&readiness, CancellationToken::new());
    TestReplica {
        limiter,
        clock,
        readiness,
        metrics,
        policies,
        task: tokio::spawn(async move { Box::pin(run).await.unwrap() }),
    }
}

pub fn attempt(key: &str, uid: &str) -> Attempt {
    let (namespace, name) = key.split_once('/').unwrap();
    let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
    Attempt {
        uid: format!("request-{uid}"),
        job: JobSnapshot { namespace, name, uid, ..JobSnapshot::default() },
        from: None,
        earlier_slots: EarlierSlots::Nothing,
        dry_run: false,
        probe: false,
        answer_by: Instant::now() + Duration::from_secs(30),
    }
}

pub fn empty() -> Value {
    json!({"format": 1})
}

/// A duration below `up_to` milliseconds that varies with `n` and is the same in each run.
pub fn spread(n: usize, up_to: u64) -> Duration {
    Duration::from_millis((n as u64 * 7919 + 13) % up_to)
}

pub fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Unavailable { why, .. } | Verdict::TooMany { why, .. } => why,
        Verdict::Refused(refused) => refused.message,
        Verdict::Granted => panic!("granted"),
    }
}

/// Waits until `holds`.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
