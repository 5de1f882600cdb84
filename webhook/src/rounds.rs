//! The first limiter: decides by consistent LISTs, exact among the requests of one process.
//!
//! All requests that wait for the same namespace (or for the cluster) are served in one round: one LIST that begins
//! after they came, then one decision after the other. What was granted and not seen yet counts ([`crate::slots`]).
//! With several replicas at once it is not exact, so the program uses the shared ledger, [`crate::ledger`], behind
//! [`Limiter`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use job_handler_shared::policy::Scope;
use kube::Client;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    limit::{Attempt, Limiter, Verdict},
    list,
    metrics::WebhookMetrics,
    policies::Policies,
    slots::{Rules, Slots, View},
};

/// Requests that may wait for their round; more are turned away.
const WAITING: usize = 4096;
/// A LIST that takes longer helps nobody: its callers are about to give up.
const LIST_TIMEOUT: Duration = Duration::from_secs(8);
/// So long before the caller gives up an answer is sent.
const MARGIN: Duration = Duration::from_millis(300);

/// Asks the rounds. Clones ask the same ones.
#[derive(Clone)]
pub struct ListLimiter {
    waiting: mpsc::Sender<Waiting>,
    policies: Policies,
}

/// The task behind it.
pub struct Rounds {
    waiting: mpsc::Receiver<Waiting>,
    shared: Shared,
}

/// A round died. The process should end: what it had granted is forgotten.
#[derive(Debug, thiserror::Error)]
#[error("deciding about limits broke: {0}")]
pub struct RoundsError(#[from] tokio::task::JoinError);

struct Waiting {
    attempt: Attempt,
    reply: oneshot::Sender<Verdict>,
}

#[derive(Clone)]
struct Shared {
    client: Client,
    policies: Policies,
    slots: Arc<Mutex<Slots>>,
    metrics: WebhookMetrics,
}

/// What one LIST is of: a namespace, or (None) the cluster.
type Ledger = Option<String>;

/// A limiter and the task that has to run for it.
pub fn limiter(client: Client, policies: Policies, metrics: WebhookMetrics) -> (ListLimiter, Rounds) {
    let (waiting, receiver) = mpsc::channel(WAITING);
    let shared = Shared { client, policies: policies.clone(), slots: Arc::default(), metrics };
    (ListLimiter { waiting, policies }, Rounds { waiting: receiver, shared })
}

impl Limiter for ListLimiter {
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict> {
        let until = attempt.answer_by.checked_sub(MARGIN).unwrap_or(attempt.answer_by);
        async move {
            if !self.is_limited(&attempt) {
                return Verdict::Granted;
            }
            let (reply, verdict) = oneshot::channel();
            if let Err(error) = self.waiting.try_send(Waiting { attempt, reply }) {
                return unavailable(match error {
                    mpsc::error::TrySendError::Full(_) => "too many Jobs wait for a decision",
                    mpsc::error::TrySendError::Closed(_) => "job-handler is shutting down",
                });
            }
            // Dropping the receiver tells the round that nobody hears it any more.
            match tokio::time::timeout_at(until.into(), verdict).await {
                Ok(Ok(verdict)) => verdict,
                Ok(Err(_)) => unavailable("job-handler is shutting down"),
                Err(_) => unavailable("the apiserver did not answer in time how many Jobs are active"),
            }
        }
        .boxed()
    }
}

impl ListLimiter {
    fn is_limited(&self, attempt: &Attempt) -> bool {
        let policies = self.policies.current();
        rules(&policies, &|name| self.policies.known_namespace(name))
            .matching(&attempt.job)
            .iter()
            .any(|policy| policy.limits_jobs())
    }
}

fn rules<'a>(
    policies: &'a job_handler_shared::combine::PolicySet,
    namespaces: &'a (dyn Fn(&str) -> Option<Arc<job_handler_shared::combine::Labels>> + Sync),
) -> Rules<'a> {
    Rules { policies, namespaces }
}

fn unavailable(why: &str) -> Verdict {
    Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 }
}

impl Rounds {
    /// Serves until `shutdown`, then answers what still waits.
    ///
    /// # Errors
    /// Where a round panicked.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), RoundsError> {
        let mut running: JoinSet<Ledger> = JoinSet::new();
        // Those whose ledger has a round already; the key is there as long as one runs.
        let mut next: HashMap<Ledger, Vec<Waiting>> = HashMap::new();
        loop {
            let came = tokio::select! {
                biased;
                Some(done) = running.join_next() => {
                    let ledger = done?;
                    match next.remove(&ledger) {
                        Some(batch) if !batch.is_empty() => {
                            next.insert(ledger.clone(), Vec::new());
                            running.spawn(self.shared.clone().round(ledger, batch));
                        }
                        _ => {}
                    }
                    continue;
                }
                came = self.waiting.recv() => came,
                () = shutdown.cancelled(), if running.is_empty() && self.waiting.is_empty() => None,
            };
            let Some(came) = came else { return Ok(()) };
            // Everything that came meanwhile shares the round.
            let mut batches: HashMap<Ledger, Vec<Waiting>> = HashMap::new();
            let mut came = Some(came);
            while let Some(waiting) = came.take().or_else(|| self.waiting.try_recv().ok()) {
                batches.entry(self.shared.ledger(&waiting.attempt)).or_default().push(waiting);
            }
            for (ledger, batch) in batches {
                match next.get_mut(&ledger) {
                    Some(queue) => queue.extend(batch),
                    None => {
                        next.insert(ledger.clone(), Vec::new());
                        running.spawn(self.shared.clone().round(ledger, batch));
                    }
                }
            }
        }
    }
}

impl Shared {
    /// Whose LIST decides about it.
    fn ledger(&self, attempt: &Attempt) -> Ledger {
        let policies = self.policies.current();
        let cluster = rules(&policies, &|name| self.policies.known_namespace(name))
            .scopes(&attempt.job)
            .iter()
            .any(|(_, limit)| limit.scope == Scope::Cluster);
        (!cluster).then(|| attempt.job.namespace.clone())
    }

    async fn round(self, ledger: Ledger, batch: Vec<Waiting>) -> Ledger {
        self.metrics.consistent_reads.inc();
        let seen = tokio::time::timeout(LIST_TIMEOUT, self.look(ledger.clone())).await;
        let view = match seen {
            Ok(Ok(view)) => view,
            Ok(Err(why)) => return self.turn_away(ledger, batch, &why),
            Err(_) => return self.turn_away(ledger, batch, "the apiserver did not answer in time"),
        };
        let policies = self.policies.current();
        let namespaces = |name: &str| self.policies.known_namespace(name);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unheard = Vec::new();
        {
            let mut round = slots.round(&view, rules(&policies, &namespaces), Timestamp::now());
            for Waiting { attempt, reply } in batch {
                if reply.is_closed() || Instant::now() >= attempt.answer_by {
                    continue;
                }
                let verdict = round.decide(&attempt);
                let recorded = verdict == Verdict::Granted && !attempt.dry_run;
                if reply.send(verdict).is_err() && recorded {
                    unheard.push(attempt.uid);
                }
            }
        }
        for uid in unheard {
            slots.undo(&uid);
        }
        self.metrics.pending_attempts.set(i64::try_from(slots.pending()).unwrap_or(i64::MAX));
        ledger
    }

    /// A view whose namespaces are all known, else a cluster limit could miss some of its Jobs.
    async fn look(&self, ledger: Ledger) -> Result<View, String> {
        let view = list::jobs(&self.client, ledger).await.map_err(|error| error.to_string())?;
        for job in view.jobs.iter().filter(|job| job.is_active()) {
            if self.policies.namespace(&job.namespace).await.is_none() {
                return Err(format!("the namespace {} is not known yet", job.namespace));
            }
        }
        Ok(view)
    }

    fn turn_away(&self, ledger: Ledger, batch: Vec<Waiting>, why: &str) -> Ledger {
        tracing::warn!(waiting = batch.len(), "cannot decide about limits: {why}");
        for Waiting { reply, .. } in batch {
            if reply.send(unavailable(why)).is_err() {
                tracing::debug!("a caller is gone");
            }
        }
        ledger
    }
}
