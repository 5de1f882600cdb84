//! The one task of a process that decides by a ledger. All requests that wait share a round.
//!
//! A round decides by the newest known ledger and the watched Jobs, and writes the ledger unless another replica has
//! written meanwhile: a grant costs a single write, which also proves that the ledger was the newest. Before refusing, the
//! actor re-reads ledger and Jobs (`fresh_read`) in a read that begins after the request arrived, so
//! that a Job that has just finished never causes a refusal. Rounds continue while such a read is in progress.

use std::{sync::Arc, time::Instant};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::Instrument;

use crate::{
    cache::ttl_map::TtlMap,
    ledger::{
        attempt_age::SAME_CREATE,
        fresh_read::{self, FreshRead, LedgerReadError, ReadExtent},
        ledger_id::LedgerId,
        messages::{ActorMessage, DecisionRequest},
        resolve::ViewSource,
        round_attempt::{RoundError, RoundRunner},
        shared::LedgerContext,
    },
    limit::{Attempt, FAILURE_BACKOFF, Refused, Verdict},
};

/// Most attempts at one round: each is repeated because another replica wrote first.
const MAX_ATTEMPTS: u32 = 20;
/// Most refusals to remember for that.
const MAX_REFUSALS: usize = 2048;
/// Most requests that may wait for a fresh read.
const MAX_PARKED: usize = 4096;
/// Most rejected writes of one round while it searches the grants that the apiserver rejects: enough for three among a
/// thousand.
const MAX_REJECTED: u32 = 32;
/// Jobs that a warning about many of them lists.
const LOGGED_JOBS: usize = 5;

/// Decides by one ledger.
pub struct LedgerActor {
    inbox: mpsc::Receiver<ActorMessage>,
    context: Arc<LedgerContext>,
    rounds: RoundRunner,
    /// Recent refusals by the Job's uid.
    refusals: TtlMap<Refused>,
    /// Requests that would be refused and wait for a fresh read.
    parked: Vec<DecisionRequest>,
    /// What the next fresh read has to show.
    read_extent: ReadExtent,
    /// At most one is in progress.
    fresh_reads: JoinSet<Result<FreshRead, LedgerReadError>>,
    /// Whether attempts have expired, which a fresh read has to resolve.
    expired: bool,
}

impl LedgerActor {
    /// An actor for the ledger `id`.
    pub fn new(id: LedgerId, inbox: mpsc::Receiver<ActorMessage>, context: Arc<LedgerContext>) -> Self {
        Self {
            inbox,
            rounds: RoundRunner::new(id, context.clone()),
            context,
            refusals: TtlMap::new(SAME_CREATE, MAX_REFUSALS, Instant::now()),
            parked: Vec::new(),
            read_extent: ReadExtent::default(),
            fresh_reads: JoinSet::new(),
            expired: false,
        }
    }

    /// Handles messages until all senders are dropped.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                Some(read) = self.fresh_reads.join_next() => {
                    // A panic in the read is a bug that must end the process.
                    let read = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    self.handle_read(read).await;
                }
                message = self.inbox.recv() => {
                    let Some(message) = message else { return };
                    let mut requests = Vec::new();
                    self.handle_message(message, &mut requests);
                    self.run_round(requests, None).await;
                }
            }
            self.start_fresh_read();
        }
    }

    fn start_fresh_read(&mut self) {
        if self.fresh_reads.is_empty() && (self.expired || !self.parked.is_empty()) {
            self.expired = false;
            let extent = std::mem::take(&mut self.read_extent);
            let id = self.rounds.id().clone();
            let span = tracing::info_span!("fresh_read", ledger = id.name(), ?extent);
            self.fresh_reads.spawn(fresh_read::read_fresh(self.context.clone(), id, extent).instrument(span));
        }
    }

    fn handle_message(&mut self, message: ActorMessage, requests: &mut Vec<DecisionRequest>) {
        match message {
            ActorMessage::Decide(request) => {
                let DecisionRequest { attempt, .. } = &*request;
                let refused = self.refusals.get(&attempt.job.uid, Instant::now());
                match refused.filter(|_| attempt.from.is_none()) {
                    Some(refused) => send(request.reply, Verdict::Refused(refused.clone())),
                    None => requests.push(*request),
                }
            }
            ActorMessage::Revoke(request) => self.rounds.revoke(request),
            ActorMessage::RemoveResolved => self.rounds.set_housekeeping(true),
            ActorMessage::RemoveExpired => self.expired = true,
        }
    }

    /// Answers the requests that arrived before the read began.
    async fn handle_read(&mut self, read: Result<FreshRead, LedgerReadError>) {
        match read {
            Ok(fresh) => {
                let (requests, parked) = std::mem::take(&mut self.parked)
                    .into_iter()
                    .partition(|request: &DecisionRequest| request.arrived <= fresh.began);
                self.parked = parked;
                self.run_round(requests, Some(fresh)).await;
            }
            Err(LedgerReadError::Missing(at)) => {
                if let RoundError::Failed(why) = self.rounds.create_ledger(at).await {
                    self.fail_parked(&why);
                }
            }
            Err(LedgerReadError::Failed(why)) => self.fail_parked(&why),
        }
    }

    fn fail_parked(&mut self, why: &str) {
        let parked = std::mem::take(&mut self.parked);
        self.fail_requests(parked, false, why);
    }

    /// Runs a round, again whenever another replica writes first. With a fresh read every request is answered; without
    /// one, only those that are granted, and the others are parked.
    ///
    /// If the apiserver rejects the ledger with the grants of these requests, each half of them has a round of its own, down
    /// to the request that is rejected by itself, so that the others go on.
    async fn run_round(&mut self, requests: Vec<DecisionRequest>, fresh: Option<FreshRead>) {
        if fresh.is_none() && !requests.is_empty() {
            self.gather(requests.len()).await;
        }
        let mut rejected = 0;
        // The next to run is the last one.
        let mut parts = vec![requests];
        while let Some(part) = parts.pop() {
            let Some((mut part, why)) = self.run_part(part, fresh.as_ref()).await else { continue };
            rejected += 1;
            if part.len() > 1 && rejected < MAX_REJECTED {
                let rest = part.split_off(part.len() / 2);
                parts.extend([rest, part]);
            } else {
                self.fail_requests(part, false, &why);
            }
        }
        self.rounds.set_housekeeping(false);
    }

    /// Runs a round for these requests, as [`run_round`](Self::run_round). Returns them if the apiserver rejects the write,
    /// and why.
    async fn run_part(
        &mut self,
        mut requests: Vec<DecisionRequest>,
        fresh: Option<&FreshRead>,
    ) -> Option<(Vec<DecisionRequest>, String)> {
        // Whether the answer to a write of this round was lost.
        let mut unknown_write = false;
        self.rounds.begin();
        for n in 0..MAX_ATTEMPTS {
            if fresh.is_none() {
                if !requests.is_empty() {
                    self.rounds.wait_for_other_writers().await;
                }
                while let Ok(message) = self.inbox.try_recv() {
                    self.handle_message(message, &mut requests);
                }
            }
            requests = self.without_abandoned(requests, unknown_write);
            if n > 0 && requests.is_empty() && !self.rounds.has_revoked() {
                break;
            }
            let span = tracing::info_span!("round", ledger = self.rounds.id().name(), attempt = n + 1);
            let attempts: Vec<&Attempt> = requests.iter().map(|request| &request.attempt).collect();
            match self.rounds.attempt(&attempts, fresh).instrument(span).await {
                Ok(verdicts) => {
                    let view_source = fresh.map(|fresh| fresh.view_source);
                    self.answer(std::mem::take(&mut requests), verdicts, view_source);
                    break;
                }
                Err(RoundError::Retry) => {}
                Err(RoundError::RetryUnknownWrite) => unknown_write = true,
                Err(RoundError::StaleCache) => {
                    self.park(std::mem::take(&mut requests));
                    break;
                }
                Err(RoundError::UnknownLabels) => {
                    let knows_labels =
                        |request: &DecisionRequest| self.rounds.knows_labels(&request.attempt, fresh);
                    let (known, unknown): (Vec<_>, Vec<_>) = requests.into_iter().partition(knows_labels);
                    requests = known;
                    self.fail_requests(unknown, unknown_write, "the policies have just changed");
                    continue;
                }
                // What an earlier write with a lost answer stored has to be found first.
                Err(RoundError::Rejected(why)) if !unknown_write && !requests.is_empty() => {
                    return Some((requests, why));
                }
                Err(RoundError::Rejected(why) | RoundError::Failed(why)) => {
                    self.fail_requests(std::mem::take(&mut requests), unknown_write, &why);
                    break;
                }
            }
            tokio::time::sleep(self.rounds.retry_delay()).await;
        }
        self.fail_requests(requests, unknown_write, "other replicas kept writing the ledger first");
        None
    }

    async fn gather(&self, requests: usize) {
        let delay = self.rounds.batching_delay(requests + self.inbox.len());
        // Even a sleep of zero takes until the timer's next millisecond.
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// The requests whose callers still wait for an answer.
    fn without_abandoned(
        &mut self,
        requests: Vec<DecisionRequest>,
        unknown_write: bool,
    ) -> Vec<DecisionRequest> {
        let (abandoned, waiting): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request: &DecisionRequest| {
                request.reply.is_closed() || Instant::now() >= request.attempt.answer_by
            });
        self.revoke_unknown(&abandoned, unknown_write);
        waiting
    }

    /// Sends the verdicts that the view justifies and parks the other requests: a refusal needs a fresh read, and one for
    /// failure backoff a LIST, since only that shows finished Jobs as they are now.
    fn answer(
        &mut self,
        requests: Vec<DecisionRequest>,
        verdicts: Vec<Verdict>,
        view_source: Option<ViewSource>,
    ) {
        self.refusals.evict(Instant::now());
        let mut parked = Vec::new();
        for (request, verdict) in requests.into_iter().zip(verdicts) {
            let is_backoff =
                matches!(&verdict, Verdict::Refused(refused) if refused.limit == FAILURE_BACKOFF);
            let is_justified = match view_source {
                None => false,
                Some(ViewSource::Cache(_)) => !is_backoff,
                Some(ViewSource::List) => true,
            };
            if verdict == Verdict::Granted || is_justified {
                self.send_verdict(request, verdict);
            } else {
                if is_backoff {
                    self.read_extent = ReadExtent::AllJobs;
                }
                parked.push(request);
            }
        }
        self.park(parked);
    }

    fn send_verdict(&mut self, request: DecisionRequest, verdict: Verdict) {
        let DecisionRequest { attempt, reply, .. } = request;
        let granted = verdict == Verdict::Granted && attempt.takes_slot();
        if granted && self.rounds.is_late() {
            self.rounds.revoke(attempt.uid);
            send(reply, unavailable("the apiserver took too long to write the JobLedger"));
            return;
        }
        let refused = refusal_to_remember(&attempt, &verdict);
        if reply.send(verdict).is_ok() {
            // A refusal that was not delivered may be decided differently next time.
            if let Some(refused) = refused {
                self.refusals.insert(attempt.job.uid, refused, Instant::now());
            }
        } else if granted {
            self.rounds.revoke(attempt.uid);
        }
    }

    fn park(&mut self, requests: Vec<DecisionRequest>) {
        self.parked.extend(requests);
        if self.parked.len() > MAX_PARKED {
            let rest = self.parked.split_off(MAX_PARKED);
            self.fail_requests(rest, false, "too many Jobs wait for a decision");
        }
    }

    fn fail_requests(&mut self, requests: Vec<DecisionRequest>, unknown_write: bool, why: &str) {
        if !requests.is_empty() {
            let jobs: Vec<String> =
                requests.iter().take(LOGGED_JOBS).map(|one| one.attempt.job.key()).collect();
            let (ledger, waiting, jobs) = (self.rounds.id().name(), requests.len(), jobs.join(" "));
            tracing::warn!(ledger, waiting, jobs, "cannot decide about limits: {why}");
        }
        self.revoke_unknown(&requests, unknown_write);
        for request in requests {
            send(request.reply, unavailable(why));
        }
    }

    /// Revokes the grants that a write with a lost answer may have stored.
    fn revoke_unknown(&mut self, requests: &[DecisionRequest], unknown_write: bool) {
        for request in requests.iter().filter(|request| unknown_write && request.attempt.takes_slot()) {
            self.rounds.revoke(request.attempt.uid.clone());
        }
    }
}

/// The refusal of a create, whose every try has its own Job uid. A Job that is un-suspended keeps its uid and may try again.
fn refusal_to_remember(attempt: &Attempt, verdict: &Verdict) -> Option<Refused> {
    let is_create = attempt.from.is_none() && !attempt.dry_run && !attempt.job.uid.is_empty();
    match verdict {
        Verdict::Refused(refused) if is_create => Some(refused.clone()),
        _ => None,
    }
}

pub(super) fn unavailable(why: &str) -> Verdict {
    Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 }
}

fn send(reply: oneshot::Sender<Verdict>, verdict: Verdict) {
    if reply.send(verdict).is_err() {
        tracing::debug!("the caller did not wait for the verdict");
    }
}

#[cfg(test)]
mod tests;
