//! The limiter against an apiserver of our own making: bursts, slow writes, denials, faults.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::policy;
use futures::future::join_all;
use http::{Request, Response};
use job_handler_shared::{
    combine::{Labels, Policy, PolicySet},
    job::JobSnapshot,
    telemetry::Metrics,
};
use job_handler_webhook::{
    limit::{Attempt, Limiter, Verdict},
    metrics::WebhookMetrics,
    policies::Policies,
    rounds::{self, ListLimiter},
};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Jobs as stored, and how the apiserver behaves.
#[derive(Default)]
struct Apiserver {
    jobs: Mutex<BTreeMap<String, Value>>,
    lists: AtomicUsize,
    /// How long a LIST takes; it shows what is stored in the middle of it.
    takes: Duration,
    fault: Option<u16>,
    page: Option<usize>,
}

impl Apiserver {
    fn client(self: &Arc<Self>) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            let query = request.uri().query().unwrap_or_default().to_owned();
            async move { Ok::<_, std::convert::Infallible>(this.answer(&query).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, query: &str) -> Response<Body> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.takes / 2).await;
        let (status, body) = match self.fault {
            Some(code) => (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "x"}),
            ),
            None => (200, self.list(query)),
        };
        tokio::time::sleep(self.takes / 2).await;
        Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap()
    }

    fn list(&self, query: &str) -> Value {
        assert!(!query.contains("resourceVersion"), "not consistent: {query}");
        let jobs: Vec<Value> = self.jobs.lock().unwrap().values().cloned().collect();
        let from: usize = query.split("continue=").nth(1).map_or(0, |token| token.parse().unwrap());
        let page = self.page.unwrap_or(500);
        let more = (from + page < jobs.len()).then(|| (from + page).to_string());
        let items: Vec<_> = jobs.into_iter().skip(from).take(page).collect();
        json!({"kind": "JobList", "apiVersion": "batch/v1", "metadata": {"resourceVersion": "1", "continue": more}, "items": items})
    }

    fn active(&self) -> usize {
        self.jobs.lock().unwrap().values().filter(|job| job["status"]["conditions"].is_null()).count()
    }

    fn store(&self, name: &str, uid: &str) {
        let job = json!({"metadata": {"name": name, "namespace": "ci", "uid": uid, "resourceVersion": "7"}, "spec": {"template": {}}});
        self.jobs.lock().unwrap().insert(name.to_owned(), job);
    }

    fn finish(&self, name: &str) {
        self.jobs.lock().unwrap().get_mut(name).unwrap()["status"] =
            json!({"conditions": [{"type": "Complete", "status": "True"}]});
    }
}

fn few(max: u32) -> Arc<Policy> {
    policy("builds", json!({"limits": [{"name": "few", "maxActiveJobs": max}]}))
}

/// A running limiter; ends when dropped.
struct Running {
    limiter: ListLimiter,
    token: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn run(apiserver: &Arc<Apiserver>, policies: impl IntoIterator<Item = Arc<Policy>>) -> Running {
    let metrics = WebhookMetrics::new(&Metrics::default());
    let policies = Policies::fixed(PolicySet::new(policies), [("ci".to_owned(), Labels::new())]);
    let (limiter, rounds) = rounds::limiter(apiserver.client(), policies, metrics);
    let token = CancellationToken::new();
    let shutdown = token.clone();
    let task = tokio::spawn(async move { rounds.run(shutdown).await.unwrap() });
    Running { limiter, token, task }
}

fn attempt(name: &str, uid: &str) -> Attempt {
    let job =
        JobSnapshot { namespace: "ci".into(), name: name.into(), uid: uid.into(), ..JobSnapshot::default() };
    Attempt {
        uid: format!("request-{uid}"),
        job,
        from: None,
        dry_run: false,
        answer_by: Instant::now() + Duration::from_secs(5),
    }
}

/// Spread without a source of randomness: the same each time.
fn spread(n: usize, up_to: u64) -> Duration {
    Duration::from_millis((n as u64 * 7919 + 13) % up_to)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_never_exceeds_the_limit_and_all_get_in_in_the_end() {
    const MAX: usize = 5;
    let apiserver = Arc::new(Apiserver { takes: Duration::from_millis(8), ..Apiserver::default() });
    let running = run(&apiserver, [few(MAX as u32)]);
    let most = Arc::new(AtomicUsize::new(0));
    let creates = (0..60).map(|n| {
        let (apiserver, limiter, most) = (apiserver.clone(), running.limiter.clone(), most.clone());
        async move {
            let name = format!("j{n}");
            for retry in 0usize.. {
                let uid = format!("{n}-{retry}");
                if limiter.admit(attempt(&name, &uid)).await == Verdict::Granted {
                    // The write comes later than the grant; the Job runs for a while.
                    tokio::time::sleep(spread(n, 23)).await;
                    apiserver.store(&name, &uid);
                    most.fetch_max(apiserver.active(), Ordering::SeqCst);
                    tokio::time::sleep(spread(n + 5, 17)).await;
                    apiserver.finish(&name);
                    return;
                }
                tokio::time::sleep(spread(n + retry, 11)).await;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(60), join_all(creates)).await.expect("nobody starves");
    let most = most.load(Ordering::SeqCst);
    assert!((2..=MAX).contains(&most), "{most} were active at once");
    running.token.cancel();
    running.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_as_many_as_there_are_slots_get_in_at_once() {
    let apiserver = Arc::new(Apiserver { takes: Duration::from_millis(5), ..Apiserver::default() });
    let running = run(&apiserver, [few(7)]);
    let creates = (0..100).map(|n| {
        let (apiserver, limiter) = (apiserver.clone(), running.limiter.clone());
        async move {
            tokio::time::sleep(spread(n, 40)).await;
            let (name, uid) = (format!("j{n}"), n.to_string());
            let granted = limiter.admit(attempt(&name, &uid)).await == Verdict::Granted;
            // Those that are granted are written late, a quarter of them never: somebody denies them after us.
            if granted && n % 4 != 0 {
                tokio::time::sleep(spread(n, 60)).await;
                apiserver.store(&name, &uid);
            }
            usize::from(granted)
        }
    });
    assert_eq!(join_all(creates).await.into_iter().sum::<usize>(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_share_a_list_that_began_after_they_came() {
    let apiserver = Arc::new(Apiserver { takes: Duration::from_millis(100), ..Apiserver::default() });
    let running = run(&apiserver, [few(200)]);
    let first = running.limiter.admit(attempt("first", "first"));
    let rest = async {
        // The first LIST is under way by now; these must not join it.
        while apiserver.lists.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        join_all((0..100).map(|n| running.limiter.admit(attempt(&format!("j{n}"), &format!("{n}"))))).await
    };
    let (first, rest) = tokio::join!(first, rest);
    assert!(first == Verdict::Granted && rest.iter().all(|verdict| *verdict == Verdict::Granted));
    assert_eq!(apiserver.lists.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_list_counts() {
    let apiserver = Arc::new(Apiserver { page: Some(2), ..Apiserver::default() });
    for n in 0..5 {
        apiserver.store(&format!("r{n}"), &format!("{n}"));
    }
    let running = run(&apiserver, [few(5)]);
    assert!(matches!(running.limiter.admit(attempt("x", "x")).await, Verdict::Refused(_)));
    assert_eq!(apiserver.lists.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_under_no_limit_cost_no_call() {
    let apiserver = Arc::new(Apiserver::default());
    let running = run(&apiserver, [policy("stamps", json!({"stamp": {"labels": {"a": "b"}}}))]);
    assert_eq!(running.limiter.admit(attempt("x", "x")).await, Verdict::Granted);
    assert_eq!(apiserver.lists.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apiserver_that_refuses_or_sleeps_is_named_in_time() {
    let refusing = Arc::new(Apiserver { fault: Some(403), ..Apiserver::default() });
    let running = run(&refusing, [few(5)]);
    let Verdict::Unavailable { why, .. } = running.limiter.admit(attempt("x", "x")).await else { panic!() };
    assert!(why.contains("cannot list Jobs"), "{why}");

    let asleep = Arc::new(Apiserver { takes: Duration::from_secs(60), ..Apiserver::default() });
    let running = run(&asleep, [few(5)]);
    let begun = Instant::now();
    let patience = Attempt { answer_by: begun + Duration::from_millis(600), ..attempt("x", "x") };
    let Verdict::Unavailable { why, .. } = running.limiter.admit(patience).await else { panic!() };
    assert!(why.contains("did not answer in time"), "{why}");
    assert!(begun.elapsed() < Duration::from_millis(600), "the caller is still there to hear it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_gone_takes_no_slot() {
    let apiserver = Arc::new(Apiserver { takes: Duration::from_millis(100), ..Apiserver::default() });
    let running = run(&apiserver, [few(1)]);
    let gone =
        tokio::time::timeout(Duration::from_millis(20), running.limiter.admit(attempt("gone", "gone"))).await;
    assert!(gone.is_err());
    assert_eq!(running.limiter.admit(attempt("x", "x")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_a_namespace_that_nobody_knows_decides_nothing() {
    let apiserver = Arc::new(Apiserver::default());
    apiserver.store("a", "a");
    apiserver.jobs.lock().unwrap().get_mut("a").unwrap()["metadata"]["namespace"] = json!("new");
    let running = run(&apiserver, [few(1)]);
    let Verdict::Unavailable { why, .. } = running.limiter.admit(attempt("x", "x")).await else { panic!() };
    assert!(why.contains("namespace new"), "{why}");
}
