//! A [`LedgerContext`] over the in-memory apiserver with the ledger of namespace `ci`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::{JobLedger, LedgerContents},
    policy::{reference::Labels, set::PolicySet},
    process::telemetry::Metrics,
    testing::{
        apiserver::{Apiserver, LostWrite},
        policies::job_policy,
    },
};
use serde_json::{Value, json};

use crate::{
    cache::{jobs::JobCache, policies::Policies},
    ledger::{
        attempt_age::Clock,
        client::LedgerClient,
        known_ledgers::{KnownLedger, KnownLedgers},
        ledger_id::LedgerId,
        other_webhooks::OtherWebhooks,
        shared::{LedgerContext, ReadRateLimiter},
    },
    limit::{Attempt, EarlierSlots},
    metrics::WebhookMetrics,
};

const LEDGERS: &str = "jobledgers";

/// The apiserver. Every call takes 10 ms.
pub(super) struct LedgerApiserver(Apiserver);

impl LedgerApiserver {
    /// An apiserver with this ledger.
    pub(super) fn new(spec: &Value) -> Self {
        let apiserver = Apiserver::default().with_latency(Duration::from_millis(10));
        let metadata = json!({"name": "ci", "namespace": "system"});
        apiserver.put(
            LEDGERS,
            json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger", "metadata": metadata, "spec": spec}),
        );
        Self(apiserver)
    }

    /// A context whose caches show the stored ledger, no Jobs at position 1, and a policy that limits `ci` to `max`.
    pub(super) fn context(&self, max: u32) -> Arc<LedgerContext> {
        let policy = job_policy(
            json!({"name": "p", "namespace": "ci", "uid": "p", "generation": 1}),
            json!({"limits": [{"name": "few", "maxActiveJobs": max}]}),
        );
        let context = LedgerContext {
            client: self.0.client(),
            ledger_client: LedgerClient::new(self.0.client(), "system"),
            known_ledgers: KnownLedgers::new(Clock::default()),
            other_webhooks: OtherWebhooks::default(),
            cache: JobCache::default(),
            reads: ReadRateLimiter::default(),
            policies: Policies::fixed(PolicySet::new([policy]), [("ci".to_owned(), Labels::new())]),
            namespace: "system".to_owned(),
            metrics: WebhookMetrics::new(&Metrics::default()),
        };
        context.known_ledgers.record("ci", &KnownLedger::parse(self.stored()).unwrap());
        context.cache.begin_list();
        context.cache.end_list(1);
        Arc::new(context)
    }

    /// Lets another replica write the ledger before each of the next writes.
    pub(super) fn conflict(&self, writes: u32) {
        for _ in 0..writes {
            let apiserver = self.0.clone();
            let other_write = move || apiserver.change(LEDGERS, "system", "ci", |_| ());
            self.0.before(Method::PUT, LEDGERS, other_write);
        }
    }

    /// Stores the next write and loses its response.
    pub(super) fn lose_next_response(&self) {
        self.0.lose_next(Some(LostWrite::Done));
    }

    /// Writes that contain this text are too large.
    pub(super) fn reject(&self, text: &str) {
        self.0.reject(text);
    }

    /// What the stored ledger holds.
    pub(super) fn contents(&self) -> LedgerContents {
        self.stored().spec.contents().unwrap()
    }

    /// How many writes of the ledger arrived.
    pub(super) fn writes(&self) -> usize {
        self.0.writes()
    }

    /// How many times the ledger was read.
    pub(super) fn reads(&self) -> usize {
        self.0.gets(LEDGERS)
    }

    fn stored(&self) -> JobLedger {
        serde_json::from_value(self.0.get(LEDGERS, "system", "ci").unwrap()).unwrap()
    }
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
        earlier_slots: EarlierSlots::Nothing,
        dry_run: false,
        probe: false,
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
