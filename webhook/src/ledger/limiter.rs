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
use job_handler_shared::{ledger::crd::JobLedger, policy::set::PolicySet, process::admin::Readiness};
use kube::{Client, runtime::watcher};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Message, Waiting};
use crate::{
    cache::{job_watch, jobs::Cache},
    ledger::{
        attempt_age::{Clock, EXPIRY, OLD},
        client::Store,
        count::LedgerId,
        fresh_read::Reads,
        known_ledgers::{Memory, Watcher},
        provision,
    },
};
use crate::{
    cache::{
        policies::Policies,
        reflector::{self, MirrorError, Part},
    },
    limit::{
        Attempt, Limiter, Verdict,
        scopes::{Place, Rules},
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
pub struct Shared {
    /// The apiserver.
    pub client: Client,
    /// The ledgers.
    pub store: Store,
    /// What is known of them.
    pub memory: Memory,
    /// The Jobs, as far as they were watched.
    pub cache: Cache,
    /// Consistent reads, one after the other.
    pub reads: Reads,
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
    shared: Arc<Shared>,
    actors: Arc<Mutex<HashMap<LedgerId, mpsc::Sender<Message>>>>,
    made: mpsc::UnboundedSender<Actor>,
}

/// The tasks behind it.
pub struct Ledgers {
    limiter: LedgerLimiter,
    made: mpsc::UnboundedReceiver<Actor>,
}

/// Deciding by ledgers broke. The process should end.
#[derive(Debug, thiserror::Error)]
pub enum LedgersError {
    /// An actor panicked.
    #[error("deciding about limits broke: {0}")]
    Died(#[from] JoinError),
    /// The watch ended.
    #[error(transparent)]
    Watch(#[from] MirrorError),
}

/// A limiter and the tasks that have to run for it. Ledgers are kept in `namespace`; their attempts run out by `clock`.
pub fn limiter(
    client: Client,
    namespace: &str,
    policies: Policies,
    metrics: WebhookMetrics,
    clock: Clock,
) -> (LedgerLimiter, Ledgers) {
    let (made, receiver) = mpsc::unbounded_channel();
    let store = Store::new(client.clone(), namespace);
    let shared = Arc::new(Shared {
        client,
        store,
        memory: Memory::new(clock),
        cache: Cache::default(),
        reads: Reads::default(),
        policies,
        namespace: namespace.to_owned(),
        metrics,
    });
    let limiter = LedgerLimiter { shared, actors: Arc::default(), made };
    (limiter.clone(), Ledgers { limiter, made: receiver })
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
        self.shared.memory.watches().then(|| provision::withheld(&self.shared, policies))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.memory.turns()
    }
}

impl LedgerLimiter {
    /// What it knows of Jobs and ledgers.
    pub fn shared(&self) -> Arc<Shared> {
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
        let rules = Rules { policies: &policies, namespaces: &namespaces };
        let scopes = rules.scopes(&attempt.job);
        let cluster = scopes.iter().any(|(scope, _)| scope.place == Place::Cluster);
        let within = scopes.iter().any(|(scope, _)| scope.place != Place::Cluster);
        let waits =
            || rules.matching(&attempt.job).iter().any(|policy| policy.spec.failure_backoff.is_some());
        let namespace = (within || waits()).then(|| LedgerId::Namespace(attempt.job.namespace.clone()));
        (cluster, namespace)
    }

    async fn ask(&self, ledger: LedgerId, attempt: Attempt) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        match self.tell(
            ledger,
            Message::Decide(Box::new(Waiting { attempt, arrived: std::time::Instant::now(), reply })),
        ) {
            // The actor ends only with the process.
            true => verdict.await.unwrap_or_else(|_| unavailable("job-handler is shutting down")),
            false => unavailable("too many Jobs wait for a decision"),
        }
    }

    /// Whether the actor of a ledger takes a message; one is made where there is none.
    fn tell(&self, ledger: LedgerId, message: Message) -> bool {
        let mut actors = self.actors.lock();
        let sender = actors.entry(ledger.clone()).or_insert_with(|| {
            let (sender, inbox) = mpsc::channel(WAITING);
            let shared = self.shared.clone();
            if self.made.send(Actor::new(ledger, inbox, shared)).is_err() {
                tracing::debug!("shutting down: nobody decides any more");
            }
            sender
        });
        sender.try_send(message).is_ok()
    }
}

/// Ledgers that may hold a grant which nobody was told of.
struct Grants<'a> {
    limiter: &'a LedgerLimiter,
    request: String,
    by: Vec<LedgerId>,
}

impl Drop for Grants<'_> {
    fn drop(&mut self) {
        for ledger in self.by.drain(..) {
            // Where it cannot be told, the attempt runs out.
            self.limiter.tell(ledger, Message::Undo(self.request.clone()));
        }
    }
}

impl Ledgers {
    /// Watches the ledgers, and decides until `shutdown`.
    ///
    /// # Errors
    /// Where an actor panicked, or the watch ended.
    pub fn run(
        self,
        readiness: &Readiness,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), LedgersError>> + Send + 'static {
        let part = Part {
            name: "JobLedgers",
            plural: "jobledgers.job-handler.io",
            ready: readiness.part("JobLedgers"),
        };
        let shared = self.limiter.shared.clone();
        let jobs = Part { name: "Jobs", plural: "jobs.batch", ready: readiness.part("Jobs") };
        let feed = job_watch::follow(shared.client.clone(), shared.cache.clone(), jobs);
        let ahead = provision::make(shared.clone());
        let watch = async move {
            let policies = shared.policies.clone();
            // What is taken for new has to have come after the watch began: see [`Memory::missing`].
            let mut changes = policies.changes();
            while !policies.synced() && changes.changed().await.is_ok() {}
            let stream = watcher(shared.store.api(), watcher::Config::default());
            let mirror = Watcher { memory: &shared.memory, policies };
            reflector::follow::<JobLedger>(stream, part, mirror).await
        };
        async move {
            let all = async {
                tokio::select! {
                    ended = Box::pin(watch) => ended.map_err(LedgersError::from),
                    never = Box::pin(feed) => match never {},
                    never = Box::pin(ahead) => match never {},
                    ended = self.supervise() => ended,
                }
            };
            shutdown.run_until_cancelled(Box::pin(all)).await.unwrap_or(Ok(()))
        }
    }

    async fn supervise(mut self) -> Result<(), LedgersError> {
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
                Ok(()) = changes.changed() => self.limiter.shared.metrics.forget_limits(),
                _ = tick.tick() => {
                    self.housekeeping();
                }
            }
        }
    }

    fn housekeeping(&self) {
        let Shared { memory, metrics, .. } = &*self.limiter.shared;
        metrics.pending_attempts.set(i64::try_from(memory.attempts()).unwrap_or(i64::MAX));
        // Anew each time: nobody is always the last.
        let spread = full_jitter(SPREAD);
        for ledger in memory.with_older(OLD + spread, QUIET) {
            self.limiter.tell(LedgerId::of_name(&ledger), Message::Tidy);
        }
        for ledger in memory.with_older(EXPIRY + spread, Duration::ZERO) {
            self.limiter.tell(LedgerId::of_name(&ledger), Message::Expire);
        }
    }
}

fn unavailable(why: &str) -> Verdict {
    Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 }
}
