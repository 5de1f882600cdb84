//! The one task of a process that decides by a ledger. All who wait share a round.
//!
//! A round decides by the newest ledger and the newest Jobs that were watched, and writes the ledger if nobody else has
//! meanwhile: so a grant costs a single write, and the write tells whether the ledger was the newest. Whoever would be
//! refused waits for a look of its own ([`super::look`]) that begins after it came. Looks go on beside the rounds.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{limiter::LedgerContext, resolve::ViewSource};
use crate::ledger::round_attempt::Stop;
use crate::ledger::{
    batching::BatchingDelay,
    client,
    count::LedgerId,
    fresh_read::{self, FreshRead, LedgerReadError},
    scope_cache::ScopeCache,
    write_order,
};
use crate::{
    cache::ttl_map::TtlMap,
    limit::{Attempt, FAILURE_BACKOFF, Refused, Verdict},
};

/// Writes of other replicas that one round gives way to.
const TRIES: u32 = 20;
/// A second webhook entry asks about the same create within this time, and has to be answered alike.
const SAME_CREATE: Duration = Duration::from_secs(10);
/// So many refusals are remembered for that.
const REFUSED: usize = 2048;
/// For [`LedgerActor::outdated`]: only a read will do.
pub(super) const ANY: Option<u64> = Some(u64::MAX);
/// So many versions of a ledger that others write a round lets pass, at most.
const YIELDS: u32 = 4;
/// So many may wait for looks.
const PARKED: usize = 4096;

/// What an actor is told.
#[derive(Debug)]
pub enum ActorMessage {
    /// Decide.
    Decide(Box<DecisionRequest>),
    /// A grant reached nobody: take it back.
    Revoke(String),
    /// Take out the attempts whose outcome was seen, if nobody does.
    RemoveResolved,
    /// Attempts have run out: see what became of them.
    RemoveExpired,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct DecisionRequest {
    /// For what.
    pub attempt: Attempt,
    /// Since when.
    pub arrived: Instant,
    /// The answer goes there. Closed = nobody hears it any more.
    pub reply: oneshot::Sender<Verdict>,
}

/// Decides by one ledger.
pub struct LedgerActor {
    pub(super) id: LedgerId,
    pub(super) inbox: mpsc::Receiver<ActorMessage>,
    pub(super) shared: Arc<LedgerContext>,
    /// Grants that reached nobody, or may have been written without anybody knowing.
    pub(super) undo: BTreeSet<String>,
    /// What was refused a moment ago, by the Job's uid.
    pub(super) refused: TtlMap<Refused>,
    /// Those who would be refused, and wait for a look.
    pub(super) parked: Vec<DecisionRequest>,
    /// One of them would be refused by Jobs that have ended, which only a LIST shows as they are now.
    pub(super) lists: bool,
    /// One at most is under way.
    pub(super) looks: JoinSet<Result<FreshRead, LedgerReadError>>,
    /// A ledger that is known to be of this version or an older one is not the newest, or may not be.
    pub(super) outdated: Option<u64>,
    /// A write may be made for nobody's grant.
    pub(super) tidy: bool,
    pub(super) expire: bool,
    pub(super) pace: BatchingDelay,
    pub(super) found: ScopeCache,
}

impl LedgerActor {
    /// Decides by the ledger `id` whatever comes in.
    pub fn new(id: LedgerId, inbox: mpsc::Receiver<ActorMessage>, shared: Arc<LedgerContext>) -> Self {
        Self {
            id,
            inbox,
            shared,
            undo: BTreeSet::new(),
            refused: TtlMap::new(SAME_CREATE, REFUSED, Instant::now()),
            parked: Vec::new(),
            lists: false,
            looks: JoinSet::new(),
            outdated: None,
            tidy: false,
            expire: false,
            pace: BatchingDelay::default(),
            found: ScopeCache::default(),
        }
    }

    /// Serves until nobody can ask any more.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                Some(look) = self.looks.join_next() => {
                    // A look that panicked is a bug that must not be slept over.
                    let look = look.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    self.looked(look).await;
                }
                message = self.inbox.recv() => {
                    let Some(message) = message else { return };
                    let mut waiting = Vec::new();
                    self.hear(message, &mut waiting);
                    self.serve(waiting, None).await;
                }
            }
            if self.looks.is_empty() && (self.expire || !self.parked.is_empty()) {
                self.expire = false;
                let lists = std::mem::take(&mut self.lists);
                self.looks.spawn(fresh_read::look(self.shared.clone(), self.id.clone(), lists));
            }
        }
    }

    fn hear(&mut self, message: ActorMessage, waiting: &mut Vec<DecisionRequest>) {
        match message {
            ActorMessage::Decide(one) => {
                let DecisionRequest { attempt, .. } = &*one;
                let known = self.refused.get(&attempt.job.uid, Instant::now());
                match known.filter(|_| attempt.from.is_none()) {
                    Some(refused) => reply(one.reply, Verdict::Refused(refused.clone())),
                    None => waiting.push(*one),
                }
            }
            ActorMessage::Revoke(request) => {
                self.undo.insert(request);
            }
            ActorMessage::RemoveResolved => self.tidy = true,
            ActorMessage::RemoveExpired => self.expire = true,
        }
    }

    async fn looked(&mut self, look: Result<FreshRead, LedgerReadError>) {
        match look {
            Ok(look) => {
                let (waiting, parked) = std::mem::take(&mut self.parked)
                    .into_iter()
                    .partition(|waiting: &DecisionRequest| waiting.arrived <= look.began);
                self.parked = parked;
                self.serve(waiting, Some(look)).await;
            }
            Err(LedgerReadError::Missing(at)) => {
                if let Stop::Cannot(why) = self.make(at).await {
                    self.turn_away_parked(&why);
                }
            }
            Err(LedgerReadError::Failed(why)) => self.turn_away_parked(&why),
        }
    }

    fn turn_away_parked(&mut self, why: &str) {
        let parked = std::mem::take(&mut self.parked);
        self.turn_away(parked, false, why);
    }

    /// A round, as often as others write first. With a look everybody is answered; without, those who are granted.
    async fn serve(&mut self, mut waiting: Vec<DecisionRequest>, look: Option<FreshRead>) {
        // Some write of this round may have been done, or be done yet.
        let mut unsure = false;
        if look.is_none() && !waiting.is_empty() {
            let gather = self.pace.gather(waiting.len() + self.inbox.len(), Instant::now());
            // A sleep of nothing still takes until the timer's next millisecond.
            if !gather.is_zero() {
                tokio::time::sleep(gather).await;
            }
        }
        for n in 0..TRIES {
            if look.is_none() && !waiting.is_empty() {
                self.others_turns().await;
            }
            while look.is_none()
                && let Ok(message) = self.inbox.try_recv()
            {
                self.hear(message, &mut waiting);
            }
            let mut left = Vec::new();
            for one in waiting {
                if one.reply.is_closed() || Instant::now() >= one.attempt.answer_by {
                    self.forget(&one, unsure);
                } else {
                    left.push(one);
                }
            }
            waiting = left;
            if n > 0 && waiting.is_empty() && self.undo.is_empty() {
                break;
            }
            match self.once(&waiting, look.as_ref()).await {
                Ok(verdicts) => {
                    self.answer(waiting, verdicts, look.as_ref().map(|look| look.view_source));
                    waiting = Vec::new();
                    break;
                }
                Err(Stop::Again(lost)) => unsure |= lost,
                Err(Stop::Behind) => {
                    self.park(waiting);
                    waiting = Vec::new();
                    break;
                }
                Err(Stop::Cannot(why)) => {
                    self.turn_away(waiting, unsure, &why);
                    waiting = Vec::new();
                    break;
                }
            }
            tokio::time::sleep(self.pace.away()).await;
        }
        self.tidy = false;
        self.turn_away(waiting, unsure, "other replicas wrote the ledger first, again and again");
    }

    /// Waits while it is the turn of others to write, if anybody else does.
    async fn others_turns(&self) {
        let shared = &self.shared;
        if !shared.known_ledgers.is_contended(self.id.name()) {
            return;
        }
        // Each new version has an order of its own. Whoever has stood back for a few of them just tries.
        for _ in 0..YIELDS {
            let Some((known, at)) = shared.known_ledgers.latest_with_time(self.id.name()) else { return };
            let before =
                write_order::before(shared.ledger_client.writer_id(), client::writers(&known.ledger));
            let known_for = shared.known_ledgers.now().saturating_duration_since(at);
            let left = self.pace.writes(before).saturating_sub(known_for);
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Refusals are given by a look only, and those by Jobs that have ended by a LIST only.
    fn answer(&mut self, waiting: Vec<DecisionRequest>, verdicts: Vec<Verdict>, looked: Option<ViewSource>) {
        self.refused.evict(Instant::now());
        let mut parked = Vec::new();
        for (one, verdict) in waiting.into_iter().zip(verdicts) {
            let by_ended = matches!(&verdict, Verdict::Refused(refused) if refused.limit == FAILURE_BACKOFF);
            let suffices = match looked {
                None => false,
                Some(ViewSource::Cache(_)) => !by_ended,
                Some(ViewSource::List) => true,
            };
            if verdict != Verdict::Granted && !suffices {
                self.lists |= by_ended;
                parked.push(one);
                continue;
            }
            let granted = verdict == Verdict::Granted && !one.attempt.dry_run;
            let refused = refused_for_good(&one.attempt, &verdict);
            if one.reply.send(verdict).is_ok() {
                // What nobody was told may have been decided otherwise since.
                if let Some(refused) = refused {
                    self.refused.insert(one.attempt.job.uid, refused, Instant::now());
                }
            } else if granted {
                self.undo.insert(one.attempt.uid);
            }
        }
        self.park(parked);
    }

    fn park(&mut self, waiting: Vec<DecisionRequest>) {
        self.parked.extend(waiting);
        if self.parked.len() > PARKED {
            let rest = self.parked.split_off(PARKED);
            self.turn_away(rest, false, "too many Jobs wait for a decision");
        }
    }

    fn turn_away(&mut self, waiting: Vec<DecisionRequest>, unsure: bool, why: &str) {
        if !waiting.is_empty() {
            tracing::warn!(
                ledger = self.id.name(),
                waiting = waiting.len(),
                "cannot decide about limits: {why}"
            );
        }
        for one in waiting {
            self.forget(&one, unsure);
            reply(one.reply, Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 });
        }
    }

    /// It will not be granted; if it may stand in the ledger, it is taken out later.
    fn forget(&mut self, one: &DecisionRequest, unsure: bool) {
        if unsure && !one.attempt.dry_run {
            self.undo.insert(one.attempt.uid.clone());
        }
    }
}

/// Each try of a create has its own Job uid; an un-suspended Job keeps its uid and may try again.
fn refused_for_good(attempt: &Attempt, verdict: &Verdict) -> Option<Refused> {
    let once = attempt.from.is_none() && !attempt.dry_run && !attempt.job.uid.is_empty();
    match verdict {
        Verdict::Refused(refused) if once => Some(refused.clone()),
        _ => None,
    }
}

fn reply(to: oneshot::Sender<Verdict>, verdict: Verdict) {
    if to.send(verdict).is_err() {
        tracing::debug!("a caller is gone");
    }
}
