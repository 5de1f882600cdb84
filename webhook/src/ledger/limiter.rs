//! The limiter that is exact with several replicas: one actor per ledger, made when it is needed, all of them supervised.
//!
//! A Job under limits of both kinds needs both ledgers: the cluster's is looked at first without writing, then the
//! namespace's is written, then the cluster's; where that refuses after all, the first grant is taken back.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use job_handler_shared::process::jitter::full_jitter;
use job_handler_shared::{policy::set::PolicySet, process::admin::Readiness};
use kube::{Client, runtime::watcher};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::actor::{ActorMessage, DecisionRequest, LedgerActor};
use crate::{
    cache::{job_watch, jobs::JobCache},
    ledger::{
        attempt_age::{Clock, EXPIRY, OLD},
        client::LedgerClient,
        count::LedgerId,
        fresh_read::ReadRateLimiter,
        known_ledgers::{KnownLedgers, LedgerWatchHandler},
        provision,
    },
};
use crate::{
    cache::{policies::Policies, reflector},
    limit::{
        Attempt, Limiter, Verdict,
        scopes::{LimitRules, ScopeDomain},
    },
    metrics::WebhookMetrics,
    presence_lease::WithheldPolicies,
};

/// Requests that may wait at one ledger; more are turned away.
const WAITING: usize = 4096;
/// So long before the caller gives up an answer is sent.
const MARGIN: Duration = Duration::from_millis(300);
/// How often ledgers with old attempts are looked for.
const TIDY: Duration = Duration::from_secs(1);
/// A ledger that was written within this time will be written again: what is known is taken out by the way.
const QUIET: Duration = Duration::from_secs(1);
/// Replicas tidy up at different times, so that one of them does.
const SPREAD: Duration = Duration::from_secs(3);

/// What all actors of a process share.
pub struct LedgerContext {
    /// The apiserver.
    pub client: Client,
    /// The ledgers.
    pub ledger_client: LedgerClient,
    /// What is known of them.
    pub known_ledgers: KnownLedgers,
    /// The Jobs, as far as they were watched.
    pub cache: JobCache,
    /// Consistent reads, one after the other.
    pub reads: ReadRateLimiter,
    /// Policies and namespaces.
    pub policies: Policies,
    /// Where the ledgers are kept: nobody's Jobs are limited there.
    pub namespace: String,
    /// Counters.
    pub metrics: WebhookMetrics,
}

/// Asks the ledgers. Clones ask the same ones.
#[derive(Clone)]
pub struct LedgerLimiter {
    shared: Arc<LedgerContext>,
    actors: Arc<Mutex<HashMap<LedgerId, mpsc::Sender<ActorMessage>>>>,
    made: mpsc::UnboundedSender<LedgerActor>,
}

/// The tasks behind it.
pub struct LedgerTasks {
    limiter: LedgerLimiter,
    made: mpsc::UnboundedReceiver<LedgerActor>,
}

/// Deciding by ledgers broke. The process should end.
#[derive(Debug, thiserror::Error)]
pub enum LedgerTaskError {
    /// An actor panicked.
    #[error("deciding about limits broke: {0}")]
    Died(#[from] JoinError),
    /// The watch ended.
    #[error("the watch of JobLedgers ended")]
    Watch,
}

/// A limiter and the tasks that have to run for it. LedgerTasks are kept in `namespace`; their attempts run out by `clock`.
pub fn limiter(
    client: Client,
    namespace: &str,
    policies: Policies,
    metrics: WebhookMetrics,
    clock: Clock,
) -> (LedgerLimiter, LedgerTasks) {
    let (made, receiver) = mpsc::unbounded_channel();
    let store = LedgerClient::new(client.clone(), namespace);
    let shared = Arc::new(LedgerContext {
        client,
        ledger_client: store,
        known_ledgers: KnownLedgers::new(clock),
        cache: JobCache::default(),
        reads: ReadRateLimiter::default(),
        policies,
        namespace: namespace.to_owned(),
        metrics,
    });
    let limiter = LedgerLimiter { shared, actors: Arc::default(), made };
    (limiter.clone(), LedgerTasks { limiter, made: receiver })
}

impl Limiter for LedgerLimiter {
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict> {
        let until = attempt.answer_by.checked_sub(MARGIN).unwrap_or(attempt.answer_by);
        async move {
            let begun = Instant::now();
            let asked = tokio::time::timeout_at(until.into(), self.ask_all(attempt)).await;
            let verdict = asked.unwrap_or_else(|_| {
                unavailable("the apiserver did not answer in time how many Jobs are active")
            });
            self.shared.metrics.decision(&verdict, begun.elapsed());
            verdict
        }
        .boxed()
    }
}

impl WithheldPolicies for LedgerLimiter {
    fn withheld(&self, policies: &PolicySet) -> Option<BTreeMap<String, String>> {
        self.shared.known_ledgers.is_synced().then(|| provision::withheld(&self.shared, policies))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.known_ledgers.changes()
    }
}

impl LedgerLimiter {
    /// What it knows of Jobs and ledgers.
    pub fn shared(&self) -> Arc<LedgerContext> {
        self.shared.clone()
    }

    async fn ask_all(&self, attempt: Attempt) -> Verdict {
        let (cluster, namespace) = self.ledgers(&attempt);
        // A grant that does not end in an answer is taken back, wherever this future ends.
        let mut grants = Grants { limiter: self, request: attempt.uid.clone(), by: Vec::new() };
        if cluster && namespace.is_some() && !attempt.dry_run {
            let look = Attempt { dry_run: true, ..attempt.clone() };
            let seen = self.ask(LedgerId::Cluster, look).await;
            if seen != Verdict::Granted {
                return seen;
            }
        }
        for ledger in namespace.into_iter().chain(cluster.then_some(LedgerId::Cluster)) {
            grants.by.push(ledger.clone());
            let verdict = self.ask(ledger, attempt.clone()).await;
            if verdict != Verdict::Granted {
                return verdict;
            }
        }
        grants.by.clear();
        Verdict::Granted
    }

    /// Which ledgers decide: the cluster's, the namespace's.
    fn ledgers(&self, attempt: &Attempt) -> (bool, Option<LedgerId>) {
        let policies = self.shared.policies.current();
        let namespaces = |name: &str| self.shared.policies.known_namespace(name);
        let rules = LimitRules { policies: &policies, namespaces: &namespaces };
        let scopes = rules.scopes(&attempt.job);
        let cluster = scopes.iter().any(|(scope, _)| scope.domain == ScopeDomain::Cluster);
        let within = scopes.iter().any(|(scope, _)| scope.domain != ScopeDomain::Cluster);
        let waits =
            || rules.matching(&attempt.job).iter().any(|policy| policy.spec.failure_backoff.is_some());
        let namespace = (within || waits()).then(|| LedgerId::Namespace(attempt.job.namespace.clone()));
        (cluster, namespace)
    }

    async fn ask(&self, ledger: LedgerId, attempt: Attempt) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        match self.tell(
            ledger,
            ActorMessage::Decide(Box::new(DecisionRequest {
                attempt,
                arrived: std::time::Instant::now(),
                reply,
            })),
        ) {
            // The actor ends only with the process.
            true => verdict.await.unwrap_or_else(|_| unavailable("job-handler is shutting down")),
            false => unavailable("too many Jobs wait for a decision"),
        }
    }

    /// Whether the actor of a ledger takes a message; one is made where there is none.
    fn tell(&self, ledger: LedgerId, message: ActorMessage) -> bool {
        let mut actors = self.actors.lock();
        let sender = actors.entry(ledger.clone()).or_insert_with(|| {
            let (sender, inbox) = mpsc::channel(WAITING);
            let shared = self.shared.clone();
            if self.made.send(LedgerActor::new(ledger, inbox, shared)).is_err() {
                tracing::debug!("shutting down: nobody decides any more");
            }
            sender
        });
        sender.try_send(message).is_ok()
    }
}

/// LedgerTasks that may hold a grant which nobody was told of.
struct Grants<'a> {
    limiter: &'a LedgerLimiter,
    request: String,
    by: Vec<LedgerId>,
}

impl Drop for Grants<'_> {
    fn drop(&mut self) {
        for ledger in self.by.drain(..) {
            // Where it cannot be told, the attempt runs out.
            self.limiter.tell(ledger, ActorMessage::Revoke(self.request.clone()));
        }
    }
}

impl LedgerTasks {
    /// Watches the ledgers, and decides until `shutdown`.
    ///
    /// # Errors
    /// Where an actor panicked, or the watch ended.
    pub fn run(
        self,
        readiness: &Readiness,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), LedgerTaskError>> + Send + 'static {
        let ledgers_ready = readiness.register("JobLedgers");
        let shared = self.limiter.shared.clone();
        let feed = job_watch::run(shared.client.clone(), shared.cache.clone(), readiness.register("Jobs"));
        let ahead = provision::make(shared.clone());
        let watch = async move {
            let policies = shared.policies.clone();
            // What is taken for new has to have come after the watch began: see [`KnownLedgers::missing`].
            let mut changes = policies.changes();
            while !policies.synced() && changes.changed().await.is_ok() {}
            let stream = watcher(shared.ledger_client.api(), watcher::Config::default());
            let handler = LedgerWatchHandler { memory: &shared.known_ledgers, policies };
            reflector::run(stream, "jobledgers.job-handler.io", ledgers_ready, handler).await;
        };
        async move {
            let all = async {
                tokio::select! {
                    () = Box::pin(watch) => Err(LedgerTaskError::Watch),
                    never = Box::pin(feed) => match never {},
                    never = Box::pin(ahead) => match never {},
                    ended = self.supervise() => ended,
                }
            };
            shutdown.run_until_cancelled(Box::pin(all)).await.unwrap_or(Ok(()))
        }
    }

    async fn supervise(mut self) -> Result<(), LedgerTaskError> {
        let mut actors = JoinSet::new();
        let mut changes = self.limiter.shared.policies.changes();
        let mut tick = tokio::time::interval_at(Instant::now() + TIDY, TIDY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(actor) = self.made.recv() => {
                    actors.spawn(actor.run());
                }
                Some(ended) = actors.join_next() => ended?,
                Ok(()) = changes.changed() => self.limiter.shared.metrics.clear_limits(),
                _ = tick.tick() => {
                    self.housekeeping();
                }
            }
        }
    }

    fn housekeeping(&self) {
        let LedgerContext { known_ledgers, metrics, .. } = &*self.limiter.shared;
        metrics.pending_attempts.set(i64::try_from(known_ledgers.pending_attempts()).unwrap_or(i64::MAX));
        // Anew each time: nobody is always the last.
        let spread = full_jitter(SPREAD);
        for ledger in known_ledgers.with_attempts_older_than(OLD + spread, QUIET) {
            self.limiter.tell(LedgerId::of_name(&ledger), ActorMessage::RemoveResolved);
        }
        for ledger in known_ledgers.with_attempts_older_than(EXPIRY + spread, Duration::ZERO) {
            self.limiter.tell(LedgerId::of_name(&ledger), ActorMessage::RemoveExpired);
        }
    }
}

fn unavailable(why: &str) -> Verdict {
    Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 }
}
