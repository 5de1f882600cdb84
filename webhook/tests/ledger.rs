//! Limiters of several replicas on one ledger, against an apiserver of our own making: bursts, crashes, writes whose
//! answer is lost, ledgers that are missing or cannot be read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{cluster_policy, policy};
use futures::future::join_all;
use http::{Method, Request, Response};
use job_handler_shared::{
    admin::Readiness,
    combine::{Labels, Policy, PolicySet},
    job::JobSnapshot,
    telemetry::Metrics,
};
use job_handler_webhook::{
    ledger::limiter::{LedgerLimiter, limiter},
    limit::{Attempt, Limiter, Verdict},
    metrics::WebhookMetrics,
    policies::Policies,
};
use kube::{Client, client::Body};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LEDGERS: &str = "/apis/job-handler.io/v1alpha1/namespaces/system/jobledgers";

/// Jobs and ledgers as stored, and how the apiserver behaves.
#[derive(Default)]
struct Apiserver {
    stored: Mutex<Stored>,
    /// How long a call takes; a LIST shows what is stored in the middle of it.
    takes: Duration,
    /// Of so many writes of ledgers one is done and answered with an error; 0 = none.
    lose_answers: usize,
    writes: AtomicUsize,
}

#[derive(Default)]
struct Stored {
    version: u64,
    jobs: BTreeMap<String, Value>,
    ledgers: BTreeMap<String, Value>,
    most_active: usize,
}

impl Apiserver {
    fn new(takes: u64) -> Self {
        Self { takes: Duration::from_millis(takes), ..Self::default() }
    }

    fn client(self: &Arc<Self>) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, std::convert::Infallible>(this.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        if query.contains("watch=true") {
            return std::future::pending().await;
        }
        let body = body.collect_bytes().await.unwrap();
        tokio::time::sleep(self.takes / 2).await;
        let (code, answer) = match path.strip_prefix(LEDGERS) {
            Some(name) => {
                let body = serde_json::from_slice(&body).unwrap_or_default();
                self.ledger(&parts.method, name.trim_start_matches('/'), body)
            }
            None => {
                assert!(path.ends_with("/jobs") && !query.contains("resourceVersion"), "{path}?{query}");
                let namespace = path.split('/').nth(5).filter(|_| path.contains("/namespaces/"));
                let stored = self.stored.lock().unwrap();
                let jobs = stored.jobs.iter().filter(|(key, _)| {
                    namespace.is_none_or(|namespace| key.starts_with(&format!("{namespace}/")))
                });
                let items: Vec<_> = jobs.map(|(_, job)| job.clone()).collect();
                (200, json!({"kind": "JobList", "apiVersion": "batch/v1", "metadata": {}, "items": items}))
            }
        };
        tokio::time::sleep(self.takes / 2).await;
        Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }

    fn ledger(&self, method: &Method, name: &str, mut body: Value) -> (u16, Value) {
        let mut stored = self.stored.lock().unwrap();
        let refuse = |code: u16| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "x"}),
            )
        };
        match *method {
            Method::GET if name.is_empty() => {
                let items: Vec<_> = stored.ledgers.values().cloned().collect();
                (
                    200,
                    json!({"kind": "JobLedgerList", "apiVersion": "job-handler.io/v1alpha1",
                    "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            Method::GET => {
                stored.ledgers.get(name).map_or_else(|| refuse(404), |ledger| (200, ledger.clone()))
            }
            Method::POST | Method::PUT => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                let known =
                    stored.ledgers.get(&name).map(|ledger| ledger["metadata"]["resourceVersion"].clone());
                if known.as_ref() != body["metadata"].get("resourceVersion") {
                    return refuse(409);
                }
                stored.version += 1;
                body["metadata"]["resourceVersion"] = json!(stored.version.to_string());
                stored.ledgers.insert(name, body.clone());
                let n = self.writes.fetch_add(1, Ordering::SeqCst);
                if self.lose_answers > 0 && n.is_multiple_of(self.lose_answers) {
                    refuse(500)
                } else {
                    (200, body)
                }
            }
            _ => refuse(405),
        }
    }

    /// A ledger that was made before.
    fn with_ledger(self, name: &str, spec: Value) -> Self {
        let ledger = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger",
            "metadata": {"name": name, "namespace": "system", "resourceVersion": "1"}, "spec": spec});
        self.stored.lock().unwrap().ledgers.insert(name.to_owned(), ledger);
        self
    }

    fn pending(&self, name: &str) -> usize {
        let stored = self.stored.lock().unwrap();
        let pending = stored.ledgers[name]["spec"]["pending"].as_object();
        pending.map_or(0, |names| names.values().map(|tries| tries.as_object().unwrap().len()).sum())
    }

    /// Writes a Job, as the apiserver does after admission; false = the name is taken.
    fn store(&self, key: &str, uid: &str) -> bool {
        let mut stored = self.stored.lock().unwrap();
        if stored.jobs.contains_key(key) {
            return false;
        }
        stored.version += 1;
        let (namespace, name) = key.split_once('/').unwrap();
        let version = stored.version.to_string();
        let job = json!({"metadata": {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version},
            "spec": {"template": {}}});
        stored.jobs.insert(key.to_owned(), job);
        let active = stored.jobs.values().filter(|job| job["status"]["conditions"].is_null()).count();
        stored.most_active = stored.most_active.max(active);
        true
    }

    fn finish(&self, key: &str) {
        let mut stored = self.stored.lock().unwrap();
        stored.version += 1;
        let version = stored.version.to_string();
        let job = stored.jobs.get_mut(key).unwrap();
        job["metadata"]["resourceVersion"] = json!(version);
        job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    }
}

/// A running replica; ends when dropped, at whatever it is doing.
struct Replica {
    limiter: LedgerLimiter,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn replica(apiserver: &Arc<Apiserver>, policies: &[Arc<Policy>]) -> Replica {
    let metrics = WebhookMetrics::new(&Metrics::default());
    let namespaces = ["ci", "qa"].map(|name| (name.to_owned(), Labels::new()));
    let policies = Policies::fixed(PolicySet::new(policies.iter().cloned()), namespaces);
    let (limiter, ledgers) = limiter(apiserver.client(), "system", policies, metrics);
    let run = ledgers.run(&Readiness::default(), CancellationToken::new());
    Replica { limiter, task: tokio::spawn(async move { run.await.unwrap() }) }
}

fn few(max: u32) -> Arc<Policy> {
    policy("builds", json!({"limits": [{"name": "few", "maxActiveJobs": max}]}))
}

fn attempt(key: &str, uid: &str) -> Attempt {
    let (namespace, name) = key.split_once('/').unwrap();
    let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
    Attempt {
        uid: format!("request-{uid}"),
        job: JobSnapshot { namespace, name, uid, ..JobSnapshot::default() },
        from: None,
        dry_run: false,
        answer_by: Instant::now() + Duration::from_secs(5),
    }
}

fn empty() -> Value {
    json!({"format": 1})
}

/// Spread without a source of randomness: the same each time.
fn spread(n: usize, up_to: u64) -> Duration {
    Duration::from_millis((n as u64 * 7919 + 13) % up_to)
}

fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Unavailable { why, .. } | Verdict::TooMany { why, .. } => why,
        Verdict::Refused(refused) => refused.message,
        Verdict::Granted => panic!("granted"),
    }
}

/// Every client tries until its Job is stored; of these, each one runs for a while.
async fn burst(apiserver: &Arc<Apiserver>, replicas: &[Replica], creates: usize) {
    let clients = (0..creates).map(|n| {
        let limiter = replicas[n % replicas.len()].limiter.clone();
        let key = format!("{}/j{n}", if n % 3 == 0 { "qa" } else { "ci" });
        async move {
            for retry in 0usize.. {
                let uid = format!("{n}-{retry}");
                if limiter.admit(attempt(&key, &uid)).await == Verdict::Granted {
                    tokio::time::sleep(spread(n, 23)).await;
                    assert!(apiserver.store(&key, &uid));
                    tokio::time::sleep(spread(n + 5, 17)).await;
                    apiserver.finish(&key);
                    return;
                }
                tokio::time::sleep(spread(n + retry, 31)).await;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(90), join_all(clients)).await.expect("nobody starves");
}

#[rstest]
#[case::calm(0)]
#[case::answers_are_lost(3)]
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_over_three_replicas_never_exceeds_a_limit_of_the_cluster(#[case] lose_answers: usize) {
    const MAX: usize = 4;
    let apiserver = Apiserver { lose_answers, ..Apiserver::new(4) };
    let apiserver = Arc::new(
        ["ci", "qa", "cluster.job-handler.io"]
            .into_iter()
            .fold(apiserver, |apiserver, name| apiserver.with_ledger(name, empty())),
    );
    let limits = json!({"limits": [
        {"name": "all", "maxActiveJobs": MAX, "scope": "Cluster"}, {"name": "each", "maxActiveJobs": MAX}]});
    let policies = [cluster_policy("builds", limits)];
    let replicas: Vec<_> = (0..3).map(|_| replica(&apiserver, &policies)).collect();
    burst(&apiserver, &replicas, 45).await;
    let most = apiserver.stored.lock().unwrap().most_active;
    assert!((1..=MAX).contains(&most), "{most} at a limit of {MAX}");
    // What is known is taken out without anybody asking.
    let deadline = Instant::now() + Duration::from_secs(30);
    while ["ci", "qa", "cluster.job-handler.io"].iter().any(|name| apiserver.pending(name) > 0) {
        assert!(Instant::now() < deadline, "something is left behind");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_granted_counts_after_its_death() {
    let apiserver = Arc::new(Apiserver::new(2).with_ledger("ci", empty()));
    let dying = replica(&apiserver, &[few(1)]);
    assert_eq!(dying.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    drop(dying);
    let other = replica(&apiserver, &[few(1)]);
    let refused = why(other.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("1 just admitted"), "{refused}");
    assert!(apiserver.store("ci/a", "a"));
    let refused = why(other.limiter.admit(attempt("ci/b", "b2")).await);
    assert!(refused.contains("1 running; oldest: a"), "{refused}");
    assert_eq!(apiserver.pending("ci"), 0);
    apiserver.finish("ci/a");
    assert_eq!(other.limiter.admit(attempt("ci/b", "b3")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_writes_nothing_and_a_caller_that_is_gone_gives_back() {
    let apiserver = Arc::new(Apiserver::new(60).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]);
    let dry = Attempt { dry_run: true, ..attempt("ci/dry", "dry") };
    assert_eq!(replica.limiter.admit(dry).await, Verdict::Granted);
    assert_eq!(apiserver.writes.load(Ordering::SeqCst), 0);
    // Dropped while the ledger is being written.
    let asks = replica.limiter.admit(attempt("ci/gone", "gone"));
    assert!(tokio::time::timeout(Duration::from_millis(150), asks).await.is_err());
    let deadline = Instant::now() + Duration::from_secs(20);
    while replica.limiter.admit(attempt("ci/x", "x")).await != Verdict::Granted {
        assert!(Instant::now() < deadline, "its slot is not given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_refuses_and_the_namespace_gets_its_slot_back() {
    let apiserver =
        Apiserver::new(1).with_ledger("ci", empty()).with_ledger("cluster.job-handler.io", empty());
    let apiserver = Arc::new(apiserver);
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 0, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits), few(1)]);
    let refused = why(replica.limiter.admit(attempt("ci/a", "a")).await);
    assert!(refused.contains("counted over the cluster"), "{refused}");
    assert_eq!((apiserver.pending("ci"), apiserver.writes.load(Ordering::SeqCst)), (0, 0));
}

#[rstest]
#[case::newer(json!({"format": 7}), "has format 7, this version knows 1")]
#[case::garbage(json!({"format": 1, "pending": 5}), "spec.pending is not as job-handler writes it")]
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_not_understood_grants_nothing(#[case] spec: Value, #[case] text: &str) {
    let apiserver = Arc::new(Apiserver::new(0).with_ledger("ci", spec.clone()));
    let replica = replica(&apiserver, &[few(5)]);
    let refused = why(replica.limiter.admit(attempt("ci/a", "a")).await);
    assert!(refused.contains(text), "{refused}");
    assert_eq!(apiserver.stored.lock().unwrap().ledgers["ci"]["spec"], spec, "and it is left as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_went_missing_grants_nothing() {
    let apiserver = Arc::new(Apiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(5)]);
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    apiserver.stored.lock().unwrap().ledgers.clear();
    let refused = why(replica.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("the JobLedger ci is missing"), "{refused}");
    assert!(apiserver.stored.lock().unwrap().ledgers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_creates_come_to_nothing_has_to_wait_and_others_do_not() {
    let apiserver = Arc::new(Apiserver::new(0).with_ledger("cluster.job-handler.io", empty()));
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 100, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits)]);
    let granted = |n: usize| replica.limiter.admit(attempt(&format!("ci/j{n}"), &format!("{n}")));
    for n in 0..16 {
        assert_eq!(granted(n).await, Verdict::Granted);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        // The name has an attempt already, so that no new name takes a slot while the clock runs.
        match replica.limiter.admit(attempt("ci/j0", &format!("again-{:?}", Instant::now()))).await {
            Verdict::TooMany { why, .. } => break why,
            _ => assert!(Instant::now() < deadline, "never told to wait"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(refused.contains("namespace ci were admitted and then not created"), "{refused}");
    assert_eq!(replica.limiter.admit(attempt("qa/x", "x")).await, Verdict::Granted);
}
