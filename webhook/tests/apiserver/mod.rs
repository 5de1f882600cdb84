//! An apiserver of our own making for limiters: Jobs and ledgers, with lists, watches and conditional writes, and the
//! faults that tests ask for.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, Request, Response};
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{parsed::Policy, reference::Labels, set::PolicySet},
    process::{admin::Readiness, telemetry::Metrics},
};
use job_handler_webhook::{
    cache::policies::Policies,
    ledger::{
        attempt_age::Clock,
        limiter::{LedgerLimiter, limiter},
    },
    limit::{Attempt, Verdict},
    metrics::WebhookMetrics,
};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const LEDGERS: &str = "/apis/job-handler.io/v1alpha1/namespaces/system/jobledgers";

/// Jobs and ledgers as stored, and how the apiserver behaves.
#[derive(Default)]
pub struct Apiserver {
    pub stored: Mutex<Stored>,
    /// How long a call takes; a LIST shows what is stored in the middle of it.
    pub takes: Duration,
    /// Of so many writes of ledgers one is done and answered with an error; 0 = none.
    pub lose_answers: usize,
    /// What becomes of the next write of a ledger, and one that may still be done.
    pub lose_next: Mutex<Option<Lost>>,
    pub late: Mutex<Option<Value>>,
    /// Jobs on a page of a LIST.
    pub page: Option<usize>,
    /// Everything but watches is answered with this.
    pub fault: Mutex<Option<u16>>,
    /// Watches of Jobs tell of what came up to this resourceVersion; 0 = of everything.
    pub told_until: AtomicU64,
    /// Watches of Jobs from before this resourceVersion end with 410.
    pub forgotten: AtomicU64,
    /// While true, reads of Jobs are not answered: they show what was stored when they came.
    pub hold_lists: watch::Sender<bool>,
    /// Writes of ledgers, consistent lists of Jobs (their first pages), all lists of Jobs.
    pub writes: AtomicUsize,
    pub lists: AtomicUsize,
    /// Reads of single Jobs.
    pub gets: AtomicUsize,
    pub changed: watch::Sender<u64>,
}

/// A write is answered with an error that leaves open what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was done.
    Done,
    /// It was not, and never will be.
    Undone,
    /// It is done later ([`Apiserver::arrive`]), if nobody writes before.
    Late,
}

#[derive(Default)]
pub struct Stored {
    pub version: u64,
    pub jobs: BTreeMap<String, Value>,
    pub ledgers: BTreeMap<String, Value>,
    pub most_active: usize,
    /// Whether of a Job, the resourceVersion, the event.
    events: Vec<(bool, u64, Value)>,
}

impl Stored {
    pub fn active(&self) -> usize {
        let is_active = |job: &&Value| {
            job["status"]["conditions"].is_null() && job["spec"]["suspend"].as_bool() != Some(true)
        };
        self.jobs.values().filter(is_active).count()
    }

    fn tell(&mut self, of_job: bool, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.events.push((of_job, self.version, event));
        self.most_active = self.most_active.max(self.active());
    }
}

impl Apiserver {
    pub fn new(takes: u64) -> Self {
        Self { takes: Duration::from_millis(takes), ..Self::default() }
    }

    pub fn client(self: &Arc<Self>) -> Client {
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
            let events = self.watch(!path.starts_with(LEDGERS), number(&query, "resourceVersion=")).await;
            return respond(200, events);
        }
        let body = body.collect_bytes().await.unwrap();
        tokio::time::sleep(self.takes / 2).await;
        let fault = *self.fault.lock();
        let (code, answer) = match path.strip_prefix(LEDGERS) {
            _ if fault.is_some() => refuse(fault.unwrap()),
            Some(name) => {
                let body = serde_json::from_slice(&body).unwrap_or_default();
                self.ledger(&parts.method, name.trim_start_matches('/'), body)
            }
            None => {
                let answer = if path.ends_with("/jobs") { self.list(&path, &query) } else { self.job(&path) };
                // Whoever came while none were held is answered, also if others are held from now on.
                let mut held = self.hold_lists.subscribe();
                held.wait_for(|held| !held).await.unwrap();
                answer
            }
        };
        tokio::time::sleep(self.takes / 2).await;
        respond(code, answer.to_string())
    }

    /// A watch that ends once it has told something.
    async fn watch(&self, of_jobs: bool, from: u64) -> String {
        let mut changed = self.changed.subscribe();
        loop {
            if of_jobs && from < self.forgotten.load(Ordering::SeqCst) {
                return json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
                    .to_string();
            }
            let until = match self.told_until.load(Ordering::SeqCst) {
                0 => u64::MAX,
                _ if !of_jobs => u64::MAX,
                until => until,
            };
            let events: String = {
                let stored = self.stored.lock();
                let new = stored.events.iter().filter(|(of_job, version, _)| {
                    *of_job == of_jobs && *version > from && *version <= until
                });
                new.map(|(.., event)| format!("{event}\n")).collect()
            };
            if !events.is_empty() {
                return events;
            }
            changed.changed().await.unwrap();
        }
    }

    fn list(&self, path: &str, query: &str) -> (u16, Value) {
        assert!(path.ends_with("/jobs") && !query.contains("resourceVersion"), "{path}?{query}");
        let from = usize::try_from(number(query, "continue=")).unwrap();
        if from == 0 {
            self.lists.fetch_add(1, Ordering::SeqCst);
        }
        let namespace = path.split('/').nth(5).filter(|_| path.contains("/namespaces/"));
        let stored = self.stored.lock();
        let jobs = stored
            .jobs
            .iter()
            .filter(|(key, _)| namespace.is_none_or(|namespace| key.starts_with(&format!("{namespace}/"))));
        let items: Vec<_> = jobs.map(|(_, job)| job.clone()).collect();
        let page = self.page.unwrap_or(500);
        let more = (from + page < items.len()).then(|| (from + page).to_string());
        let items: Vec<_> = items.into_iter().skip(from).take(page).collect();
        let metadata = json!({"resourceVersion": stored.version.to_string(), "continue": more});
        (200, json!({"kind": "JobList", "apiVersion": "batch/v1", "metadata": metadata, "items": items}))
    }

    fn job(&self, path: &str) -> (u16, Value) {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let parts: Vec<&str> = path.split('/').collect();
        let [.., namespace, "jobs", name] = parts[..] else { panic!("{path}") };
        let stored = self.stored.lock();
        stored.jobs.get(&format!("{namespace}/{name}")).map_or_else(|| refuse(404), |job| (200, job.clone()))
    }

    fn ledger(&self, method: &Method, name: &str, body: Value) -> (u16, Value) {
        let lost = if *method == Method::PUT { self.lose_next.lock().take() } else { None };
        match lost {
            Some(Lost::Undone) => {}
            Some(Lost::Late) => *self.late.lock() = Some(body),
            None => return self.ledger_now(method, name, body),
            Some(Lost::Done) => {
                self.ledger_now(method, name, body);
            }
        }
        refuse(500)
    }

    /// A write that was late is done now.
    pub fn arrive(&self) {
        let late = self.late.lock().take();
        self.ledger_now(&Method::PUT, "", late.expect("a write that is late"));
    }

    fn ledger_now(&self, method: &Method, name: &str, mut body: Value) -> (u16, Value) {
        let mut stored = self.stored.lock();
        match *method {
            Method::GET if name.is_empty() => {
                let items: Vec<_> = stored.ledgers.values().cloned().collect();
                let metadata = json!({"resourceVersion": stored.version.to_string()});
                (
                    200,
                    json!({"kind": "JobLedgerList", "apiVersion": "job-handler.io/v1alpha1",
                    "metadata": metadata, "items": items}),
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
                stored.tell(false, if known.is_some() { "MODIFIED" } else { "ADDED" }, &body);
                self.changed.send_replace(stored.version);
                // Ledgers are made ahead, at some time: only what is decided counts.
                if *method == Method::POST {
                    return (200, body);
                }
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
    pub fn with_ledger(self, name: &str, spec: Value) -> Self {
        self.put_ledger(name, spec);
        self
    }

    /// Writes a ledger, as somebody may do by hand.
    pub fn put_ledger(&self, name: &str, spec: Value) {
        let mut stored = self.stored.lock();
        stored.version += 1;
        let version = stored.version.to_string();
        let ledger = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger",
            "metadata": {"name": name, "namespace": "system", "resourceVersion": version}, "spec": spec});
        stored.ledgers.insert(name.to_owned(), ledger.clone());
        stored.tell(false, "MODIFIED", &ledger);
        self.changed.send_replace(stored.version);
    }

    /// Deletes a ledger, as somebody may do by hand.
    pub fn delete_ledger(&self, name: &str) {
        let mut stored = self.stored.lock();
        stored.version += 1;
        let version = stored.version.to_string();
        let mut ledger = stored.ledgers.remove(name).unwrap();
        ledger["metadata"]["resourceVersion"] = json!(version);
        stored.tell(false, "DELETED", &ledger);
        self.changed.send_replace(stored.version);
    }

    pub fn pending(&self, name: &str) -> usize {
        let stored = self.stored.lock();
        let pending = stored.ledgers[name]["spec"]["pending"].as_object();
        pending.map_or(0, |names| names.values().map(|tries| tries.as_object().unwrap().len()).sum())
    }

    /// Writes a Job, as the apiserver does after admission; false = the name is taken.
    pub fn store(&self, key: &str, uid: &str) -> bool {
        let (namespace, name) = key.split_once('/').unwrap();
        let job =
            json!({"metadata": {"name": name, "namespace": namespace, "uid": uid}, "spec": {"template": {}}});
        if self.stored.lock().jobs.contains_key(key) {
            return false;
        }
        self.put(key, job, "ADDED");
        true
    }

    /// Writes a Job in another state.
    pub fn change(&self, key: &str, change: impl FnOnce(&mut Value)) {
        let mut job = self.stored.lock().jobs[key].clone();
        change(&mut job);
        self.put(key, job, "MODIFIED");
    }

    pub fn finish(&self, key: &str) {
        let conditions = json!([{"type": "Complete", "status": "True"}]);
        self.change(key, |job| job["status"] = json!({"conditions": conditions}));
    }

    pub fn delete(&self, key: &str) {
        let mut stored = self.stored.lock();
        stored.version += 1;
        let version = stored.version.to_string();
        let mut job = stored.jobs.remove(key).unwrap();
        job["metadata"]["resourceVersion"] = json!(version);
        stored.tell(true, "DELETED", &job);
        self.changed.send_replace(stored.version);
    }

    fn put(&self, key: &str, mut job: Value, kind: &str) {
        let mut stored = self.stored.lock();
        stored.version += 1;
        let version = stored.version.to_string();
        job["metadata"]["resourceVersion"] = json!(version);
        stored.jobs.insert(key.to_owned(), job.clone());
        stored.tell(true, kind, &job);
        self.changed.send_replace(stored.version);
    }

    /// What watches tell of Jobs after one resourceVersion and up to another.
    pub fn jobs_told(&self, after: u64, until: u64) -> Vec<(u64, Value)> {
        let stored = self.stored.lock();
        let told = stored
            .events
            .iter()
            .filter(|(of_job, version, _)| *of_job && *version > after && *version <= until);
        told.map(|(_, version, event)| (*version, event.clone())).collect()
    }

    /// Watches of Jobs tell nothing more, or (true) everything again.
    pub fn tell_of_jobs(&self, tells: bool) {
        let version = self.stored.lock().version;
        self.told_until.store(if tells { 0 } else { version }, Ordering::SeqCst);
        self.changed.send_replace(version);
    }

    /// Watches of Jobs from before now are answered with 410.
    pub fn forget(&self) {
        let version = self.stored.lock().version;
        self.forgotten.store(version, Ordering::SeqCst);
        self.changed.send_replace(version);
    }
}

fn number(query: &str, key: &str) -> u64 {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(key));
    value.map_or(0, |value| value.parse().unwrap())
}

fn respond(code: u16, body: String) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap()
}

fn refuse(code: u16) -> (u16, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "x"}))
}

/// A running replica; ends when dropped, at whatever it is doing.
pub struct Replica {
    pub limiter: LedgerLimiter,
    pub clock: Clock,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub policies: Policies,
    task: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Replica {
    /// Everything was listed once.
    pub async fn ready(self) -> Self {
        eventually("the replica to be ready", || self.readiness.not_ready().is_empty()).await;
        self
    }

    pub fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.encode().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_default()
    }
}

pub fn replica(apiserver: &Arc<Apiserver>, policies: &[Arc<Policy>]) -> Replica {
    let (metrics, clock, readiness) = (Metrics::default(), Clock::default(), Readiness::default());
    let ours = WebhookMetrics::new(&metrics);
    let namespaces = ["ci", "qa"].map(|name| (name.to_owned(), Labels::new()));
    let policies = Policies::fixed(PolicySet::new(policies.iter().cloned()), namespaces);
    let (limiter, ledgers) = limiter(apiserver.client(), "system", policies.clone(), ours, clock.clone());
    let run = ledgers.run(&readiness, CancellationToken::new());
    Replica {
        limiter,
        clock,
        readiness,
        metrics,
        policies,
        task: tokio::spawn(async move { run.await.unwrap() }),
    }
}

pub fn attempt(key: &str, uid: &str) -> Attempt {
    let (namespace, name) = key.split_once('/').unwrap();
    let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
    Attempt {
        uid: format!("request-{uid}"),
        job: JobSnapshot { namespace, name, uid, ..JobSnapshot::default() },
        from: None,
        dry_run: false,
        answer_by: Instant::now() + Duration::from_secs(30),
    }
}

pub fn empty() -> Value {
    json!({"format": 1})
}

/// Spread without a source of randomness: the same each time.
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

/// Waits for it.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
