//! The limiter, exact with several replicas: one actor per ledger, started on its first message, all of them supervised.
//!
//! A Job under limits of both kinds needs two ledgers. The cluster's decides first without writing, then the namespace's
//! ledger is written, then the cluster's. If the cluster's refuses after all, the namespace's grant is revoked.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use job_handler_shared::{
    kube::object_stream::objects,
    policy::set::PolicySet,
    process::{admin::Readiness, jitter::full_jitter},
};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{Api, Client, runtime::watcher::Config};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{job_watch, jobs::JobCache, policies::Policies, reflector},
    ledger::{
        actor::{LedgerActor, unavailable},
        attempt_age::{Clock, USUAL_STORE_TIME},
        client::LedgerClient,
        expiry::{ANSWER_WITHIN, STORED_WITHIN},
        known_ledgers::{KnownLedgers, LedgerWatchHandler},
        ledger_id::LedgerId,
        messages::{ActorMessage, DecisionRequest},
        other_webhooks::{OtherWebhooks, WebhookWatchHandler},
        provision,
        shared::{LedgerContext, ReadRateLimiter},
    },
    limit::{
        Attempt, EarlierSlots, Limiter, Verdict,
        scopes::{LimitRules, ScopeDomain},
    },
    metrics::WebhookMetrics,
    presence_lease::WithheldPolicies,
};

/// Most messages that may wait for an actor; more are turned away.
const INBOX_SIZE: usize = 4096;
/// The verdict is sent this long before the caller gives up.
const MARGIN: Duration = Duration::from_millis(300);
/// After this time a create that was not denied after our admission has stored its Job, but for a very slow apiserver.
const OVERDUE: Duration = Duration::from_secs(5);
/// How often the ledgers are checked for old attempts.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// A ledger that was written within this time needs no housekeeping: its next write removes resolved attempts as well.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// Jitter of housekeeping, so that one replica does it before the others try.
const HOUSEKEEPING_JITTER: Duration = Duration::from_secs(3);

/// Decides by the ledgers. Clones share the actors.
#[derive(Clone)]
pub struct LedgerLimiter {
    context: Arc<LedgerContext>,
    actors: Arc<Mutex<HashMap<LedgerId, mpsc::Sender<ActorMessage>>>>,
    new_actors: mpsc::UnboundedSender<LedgerActor>,
}

/// The tasks that a [`LedgerLimiter`] depends on.
pub struct LedgerTasks {
    limiter: LedgerLimiter,
    new_actors: mpsc::UnboundedReceiver<LedgerActor>,
    clock: Clock,
}

/// Why the tasks ended. The process should end.
#[derive(Debug, thiserror::Error)]
pub enum LedgerTaskError {
    /// An actor panicked.
    #[error("the task of a ledger panicked: {0}")]
    Panicked(#[from] JoinError),
    /// The watch of the ledgers ended.
    #[error("the watch of JobLedgers ended")]
    Watch,
    /// The watch of other webhooks ended.
    #[error("the watch of ValidatingWebhookConfigurations ended")]
    Webhooks,
}

/// A limiter whose ledgers are in `namespace` and whose attempts expire by `clock`, and the tasks that must run for it.
pub fn limiter(
    client: Client,
    namespace: &str,
    policies: Policies,
    metrics: WebhookMetrics,
    clock: Clock,
) -> (LedgerLimiter, LedgerTasks) {
    let (new_actors, receiver) = mpsc::unbounded_channel();
    let context = Arc::new(LedgerContext {
        ledger_client: LedgerClient::new(client.clone(), namespace),
        client,
        known_ledgers: KnownLedgers::new(clock.clone()),
        other_webhooks: OtherWebhooks::default(),
        cache: JobCache::default(),
        reads: ReadRateLimiter::default(),
        policies,
        namespace: namespace.to_owned(),
        metrics,
    });
    let limiter = LedgerLimiter { context, actors: Arc::default(), new_actors };
    (limiter.clone(), LedgerTasks { limiter, new_actors: receiver, clock })
}

impl Limiter for LedgerLimiter {
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict> {
        let until = attempt.answer_by.checked_sub(MARGIN).unwrap_or(attempt.answer_by);
        async move {
            let begun = Instant::now();
            let job = attempt.job.key();
            let uid = attempt.job.uid.clone();
            let verdict = tokio::time::timeout_at(until.into(), self.ask_ledgers(attempt)).await;
            let verdict = verdict.unwrap_or_else(|_| {
                unavailable("the apiserver did not answer in time how many Jobs are active")
            });
            tracing::debug!(job, uid, ?verdict, "decided about limits");
            self.context.metrics.decision(&verdict, begun.elapsed());
            verdict
        }
        .boxed()
    }
}

impl WithheldPolicies for LedgerLimiter {
    fn withheld(&self, policies: &PolicySet) -> Option<BTreeMap<String, String>> {
        self.context.known_ledgers.is_synced().then(|| provision::withheld(&self.context, policies))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.context.known_ledgers.changes()
    }
}

impl LedgerLimiter {
    /// What the actors share.
    pub fn context(&self) -> Arc<LedgerContext> {
        self.context.clone()
    }

    /// The number of attempts that should have stored their Job long ago.
    pub(crate) fn overdue_attempts(&self) -> usize {
        self.context.known_ledgers.attempts_older_than(OVERDUE)
    }

    async fn ask_ledgers(&self, attempt: Attempt) -> Verdict {
        let Some((cluster, namespace)) = self.ledgers(&attempt) else {
            return unavailable("the policies have just changed");
        };
        // Revokes the grants if this future is dropped, or ends without granting.
        let mut grants = GrantGuard { limiter: self, request: attempt.uid.clone(), ledgers: Vec::new() };
        if cluster && namespace.is_some() && !attempt.dry_run {
            let probe = Attempt { probe: true, ..attempt.clone() };
            let verdict = self.ask(LedgerId::Cluster, probe).await;
            if verdict != Verdict::Granted {
                return verdict;
            }
        }
        let mut granted_at: Option<Instant> = None;
        for ledger in namespace.into_iter().chain(cluster.then_some(LedgerId::Cluster)) {
            grants.ledgers.push(ledger.clone());
            let verdict = self.ask(ledger, attempt.clone()).await;
            if verdict != Verdict::Granted {
                return verdict;
            }
            // The time in which the Job has to be stored began with the first grant.
            if granted_at.is_some_and(|at| at.elapsed() > ANSWER_WITHIN) {
                return unavailable("the apiserver took too long to write two JobLedgers");
            }
            granted_at.get_or_insert_with(Instant::now);
        }
        grants.ledgers.clear();
        Verdict::Granted
    }

    /// The ledgers that decide about an attempt: whether the cluster's does, and the namespace's if it does. `None` if
    /// policies name labels that were dropped from its Job.
    fn ledgers(&self, attempt: &Attempt) -> Option<(bool, Option<LedgerId>)> {
        let policies = self.context.policies.current();
        if !attempt.knows_labels(policies.label_keys().of(&attempt.job.namespace)) {
            return None;
        }
        let namespaces = |name: &str| self.context.policies.known_namespace(name);
        let rules = LimitRules { policies: &policies, namespaces: &namespaces };
        let mut scopes = rules.scopes(&attempt.job);
        if let EarlierSlots::Left(stored) = &attempt.earlier_slots {
            scopes.extend(rules.scopes(stored));
        }
        let cluster = scopes.iter().any(|(scope, _)| scope.domain == ScopeDomain::Cluster);
        let in_namespace = scopes.iter().any(|(scope, _)| scope.domain != ScopeDomain::Cluster);
        let has_backoff =
            || rules.matching(&attempt.job).iter().any(|policy| policy.spec.failure_backoff.is_some());
        let namespace =
            (in_namespace || has_backoff()).then(|| LedgerId::Namespace(attempt.job.namespace.clone()));
        Some((cluster, namespace))
    }

    async fn ask(&self, ledger: LedgerId, attempt: Attempt) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        let request = DecisionRequest { attempt, arrived: std::time::Instant::now(), reply };
        if !self.send(ledger, ActorMessage::Decide(Box::new(request))) {
            return unavailable("too many Jobs wait for a decision");
        }
        // The actor ends only with the process.
        verdict.await.unwrap_or_else(|_| unavailable("job-handler is shutting down"))
    }

    /// Sends a message to the actor of a ledger, starting the actor if needed. Returns false if its inbox is full.
    fn send(&self, ledger: LedgerId, message: ActorMessage) -> bool {
        let mut actors = self.actors.lock();
        let sender = actors.entry(ledger.clone()).or_insert_with(|| {
            let (sender, inbox) = mpsc::channel(INBOX_SIZE);
            if self.new_actors.send(LedgerActor::new(ledger, inbox, self.context.clone())).is_err() {
                tracing::debug!("shutting down: no actor is started any more");
            }
            sender
        });
        sender.try_send(message).is_ok()
    }
}

/// Ledgers that may hold a grant whose caller has not received an answer.
struct GrantGuard<'a> {
    limiter: &'a LedgerLimiter,
    request: String,
    ledgers: Vec<LedgerId>,
}

impl Drop for GrantGuard<'_> {
    fn drop(&mut self) {
        for ledger in self.ledgers.drain(..) {
            // If the inbox is full, the attempt expires.
            self.limiter.send(ledger, ActorMessage::Revoke(self.request.clone()));
        }
    }
}

impl LedgerTasks {
    /// Watches Jobs and ledgers and runs the actors until `shutdown`.
    ///
    /// # Errors
    /// If an actor panics, or the watch of the ledgers ends.
    pub fn run(
        self,
        readiness: &Readiness,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), LedgerTaskError>> + Send + 'static {
        let ledgers_ready = readiness.register("JobLedgers");
        let context = self.limiter.context.clone();
        let jobs_ready = readiness.register("Jobs");
        let job_watch = job_watch::run(
            context.client.clone(),
            context.cache.clone(),
            context.policies.clone(),
            jobs_ready,
        );
        let provision = provision::run(context.clone());
        // Not for readiness: without it, attempts that store no Job hold their slots longer.
        let webhooks: Api<ValidatingWebhookConfiguration> = Api::all(context.client.clone());
        let webhook_watch = reflector::run(
            objects(webhooks, Config::default()),
            "validatingwebhookconfigurations.admissionregistration.k8s.io",
            Readiness::default().register("ValidatingWebhookConfigurations"),
            WebhookWatchHandler { webhooks: context.other_webhooks.clone(), clock: self.clock.clone() },
        );
        let ledger_watch = async move {
            let policies = context.policies.clone();
            // Policies count as newer than the watch only if they come after it: see `KnownLedgers::may_recreate`.
            let mut changes = policies.changes();
            while !policies.synced() && changes.changed().await.is_ok() {}
            let stream = objects(context.ledger_client.api(), Config::default());
            let handler = LedgerWatchHandler { known_ledgers: &context.known_ledgers, policies };
            reflector::run(stream, "jobledgers.job-handler.io", ledgers_ready, handler).await;
        };
        async move {
            let all = async {
                tokio::select! {
                    () = Box::pin(ledger_watch) => Err(LedgerTaskError::Watch),
                    never = Box::pin(job_watch) => match never {},
                    never = Box::pin(provision) => match never {},
                    () = Box::pin(webhook_watch) => Err(LedgerTaskError::Webhooks),
                    ended = self.supervise() => ended,
                }
            };
            shutdown.run_until_cancelled(Box::pin(all)).await.unwrap_or(Ok(()))
        }
    }

    async fn supervise(mut self) -> Result<(), LedgerTaskError> {
        let mut actors = JoinSet::new();
        let mut changes = self.limiter.context.policies.changes();
        let mut tick =
            tokio::time::interval_at(Instant::now() + HOUSEKEEPING_INTERVAL, HOUSEKEEPING_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(actor) = self.new_actors.recv() => {
                    actors.spawn(actor.run());
                }
                Some(ended) = actors.join_next() => ended?,
                Ok(()) = changes.changed() => self.limiter.context.metrics.clear_limits(),
                _ = tick.tick() => self.start_housekeeping(),
            }
        }
    }

    fn start_housekeeping(&self) {
        let LedgerContext { known_ledgers, metrics, .. } = &*self.limiter.context;
        metrics.pending_attempts.set(i64::try_from(known_ledgers.pending_attempts()).unwrap_or(i64::MAX));
        // A new random delay each time, so that no replica is always the last.
        let jitter = full_jitter(HOUSEKEEPING_JITTER);
        for ledger in known_ledgers.with_attempts_older_than(USUAL_STORE_TIME + jitter, QUIET_TIME) {
            self.limiter.send(LedgerId::of_name(&ledger), ActorMessage::RemoveResolved);
        }
        let policies = self.limiter.context.policies.current().clone();
        for ledger in known_ledgers.with_attempts_older_than(STORED_WITHIN + jitter, Duration::ZERO) {
            let (id, latest) = (LedgerId::of_name(&ledger), known_ledgers.latest(&ledger));
            let has_expired = latest.is_some_and(|known| {
                self.limiter.context.unstored(&id, &policies, &known.contents).values().any(Duration::is_zero)
            });
            if has_expired {
                self.limiter.send(id, ActorMessage::RemoveExpired);
            }
        }
    }
}
