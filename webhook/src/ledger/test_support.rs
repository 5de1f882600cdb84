//! A [`LedgerContext`] over an in-memory apiserver that holds the ledger of namespace `ci`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, Request, Response};
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::{JobLedger, LedgerContents},
    policy::{parsed::Policy, reference::Labels, set::PolicySet, spec::JobPolicy},
    process::telemetry::Metrics,
};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    cache::{jobs::JobCache, policies::Policies},
    ledger::{
        attempt_age::Clock,
        client::LedgerClient,
        known_ledgers::{KnownLedger, KnownLedgers},
        ledger_id::LedgerId,
        shared::{LedgerContext, ReadRateLimiter},
    },
    limit::Attempt,
    metrics::WebhookMetrics,
};

/// What happens to the writes of the ledger.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Writes {
    /// They are stored if their resourceVersion is current.
    #[default]
    Work,
    /// Another replica writes before each of them.
    Conflict,
    /// The next one is stored and its answer lost; later ones work.
    LoseAnswer,
}

/// The apiserver.
#[derive(Default)]
pub(super) struct FakeApiserver {
    ledger: Mutex<Value>,
    pub(super) writes: Mutex<Writes>,
    pub(super) puts: AtomicUsize,
    pub(super) gets: AtomicUsize,
    pub(super) lists: AtomicUsize,
}

impl FakeApiserver {
    /// An apiserver with this ledger at resourceVersion 1.
    pub(super) fn new(spec: &Value) -> Arc<Self> {
        let ledger = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger", "spec": spec,
            "metadata": {"name": "ci", "namespace": "system", "resourceVersion": "1"}});
        Arc::new(Self { ledger: Mutex::new(ledger), ..Self::default() })
    }

    /// A context whose caches show the stored ledger, no Jobs at position 1, and a policy that limits `ci` to `max`.
    pub(super) fn context(self: &Arc<Self>, max: u32) -> Arc<LedgerContext> {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "p", "namespace": "ci", "uid": "p", "generation": 1},
            "spec": {"limits": [{"name": "few", "maxActiveJobs": max}]},
        }))
        .unwrap();
        let policies = PolicySet::new([Arc::new(Policy::namespaced(&policy).unwrap())]);
        let context = LedgerContext {
            client: self.client(),
            ledger_client: LedgerClient::new(self.client(), "system"),
            known_ledgers: KnownLedgers::new(Clock::default()),
            cache: JobCache::default(),
            reads: ReadRateLimiter::default(),
            policies: Policies::fixed(policies, [("ci".to_owned(), Labels::new())]),
            namespace: "system".to_owned(),
            metrics: WebhookMetrics::new(&Metrics::default()),
        };
        context.known_ledgers.record("ci", &KnownLedger::parse(self.stored()).unwrap());
        context.cache.begin_list();
        context.cache.end_list(1);
        Arc::new(context)
    }

    /// What the stored ledger holds.
    pub(super) fn contents(&self) -> LedgerContents {
        self.stored().spec.contents().unwrap()
    }

    fn stored(&self) -> JobLedger {
        serde_json::from_value(self.ledger.lock().clone()).unwrap()
    }

    fn client(self: &Arc<Self>) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.respond(request).await) }
        });
        Client::new(service, "default")
    }

    async fn respond(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let (code, answer) = match (parts.method, parts.uri.path().ends_with("/jobs")) {
            (Method::GET, true) => {
                self.lists.fetch_add(1, Ordering::SeqCst);
                (200, json!({"metadata": {"resourceVersion": "1"}, "items": []}))
            }
            (Method::GET, false) => {
                self.gets.fetch_add(1, Ordering::SeqCst);
                (200, self.ledger.lock().clone())
            }
            _ => self.put(serde_json::from_slice(&body).unwrap()),
        };
        Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }

    fn put(&self, mut body: Value) -> (u16, Value) {
        self.puts.fetch_add(1, Ordering::SeqCst);
        let mut ledger = self.ledger.lock();
        let version: u64 = ledger["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let next = json!((version + 1).to_string());
        let writes = *self.writes.lock();
        if writes == Writes::Conflict || body["metadata"]["resourceVersion"] != json!(version.to_string()) {
            ledger["metadata"]["resourceVersion"] = next;
            return (409, status(409));
        }
        body["metadata"]["resourceVersion"] = next;
        *ledger = body.clone();
        match writes {
            Writes::LoseAnswer => {
                *self.writes.lock() = Writes::Work;
                (500, status(500))
            }
            Writes::Work | Writes::Conflict => (200, body),
        }
    }
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "x"})
}

pub(super) fn id() -> LedgerId {
    LedgerId::Namespace("ci".to_owned())
}

/// A create of Job `ci/<name>` with uid and `request.uid` of the same text.
pub(super) fn attempt(name: &str) -> Attempt {
    Attempt {
        uid: name.to_owned(),
        job: JobSnapshot {
            namespace: "ci".into(),
            name: name.into(),
            uid: name.into(),
            ..JobSnapshot::default()
        },
        from: None,
        dry_run: false,
        answer_by: Instant::now() + Duration::from_secs(30),
    }
}

/// A ledger that holds the attempt of [`attempt`] for each name.
pub(super) fn ledger_with(names: &[&str]) -> Value {
    let granted = |name: &str| {
        json!({name: {"jobUid": name, "kind": "create", "revision": "other", "scopes": ["p/few"],
            "since": "2026-01-01T00:00:00Z"}})
    };
    let pending: serde_json::Map<String, Value> =
        names.iter().map(|name| (format!("ci/{name}"), granted(name))).collect();
    json!({"format": 1, "pending": pending})
}
