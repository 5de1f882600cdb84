//! The one task of a process that decides by a ledger. All who wait share a round.
//!
//! A round decides by the newest ledger and the newest Jobs that were watched, and writes the ledger if nobody else has
//! meanwhile: so a grant costs a single write, and the write tells whether the ledger was the newest. Whoever would be
//! refused waits for a look of its own ([`super::look`]) that begins after it came. Looks go on beside the rounds.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::JobSnapshot,
    ledger::{Book, Kind},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    ahead,
    clocks::OLD,
    counting::{self, LedgerId},
    decide::Decided,
    graves::Grave,
    limiter::Shared,
    look::{self, Blind, Look},
    memory::Known,
    pace::Pace,
    resolve::Sight,
    round::{Sources, round},
    store::Write,
};
use crate::{
    limit::{Attempt, Refused, Verdict},
    slots::Rules,
};

/// Writes of other replicas that one round gives way to.
const TRIES: u32 = 20;
/// So long a round waits for the watch to tell what somebody else has seen already.
const BEHIND: Duration = Duration::from_millis(100);
/// A second webhook entry asks about the same create within this time, and has to be answered alike.
const SAME_CREATE: Duration = Duration::from_secs(10);
/// So many may wait for looks.
const PARKED: usize = 4096;

/// What an actor is told.
#[derive(Debug)]
pub enum Message {
    /// Decide.
    Decide(Box<Waiting>),
    /// A grant reached nobody: take it back.
    Undo(String),
    /// Take out the attempts whose outcome was seen, if nobody does.
    Tidy,
    /// Attempts have run out: see what became of them.
    Expire,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiting {
    /// For what.
    pub attempt: Attempt,
    /// Since when.
    pub arrived: Instant,
    /// The answer goes there. Closed = nobody hears it any more.
    pub reply: oneshot::Sender<Verdict>,
}

/// Decides by one ledger.
pub struct Actor {
    id: LedgerId,
    inbox: mpsc::Receiver<Message>,
    shared: Arc<Shared>,
    /// Grants that reached nobody, or may have been written without anybody knowing.
    undo: BTreeSet<String>,
    /// What was refused a moment ago, by the Job's uid.
    refused: HashMap<String, (Refused, Instant)>,
    /// Those who would be refused, and wait for a look.
    parked: Vec<Waiting>,
    /// One at most is under way.
    looks: JoinSet<Result<Look, Blind>>,
    /// What was watched is not the newest, or may not be.
    reread: bool,
    /// A write may be made for nobody's grant.
    tidy: bool,
    expire: bool,
    pace: Pace,
}

/// Why a try of a round gave no answers.
enum Stop {
    /// Somebody else wrote first, or nobody knows what became of the write (true): start over.
    Again(bool),
    /// What was watched is older than what somebody else has seen: only a look can tell.
    Behind,
    /// There is no point in trying again now.
    Cannot(String),
}

impl Actor {
    /// Decides by the ledger `id` whatever comes in.
    pub fn new(id: LedgerId, inbox: mpsc::Receiver<Message>, shared: Arc<Shared>) -> Self {
        Self {
            id,
            inbox,
            shared,
            undo: BTreeSet::new(),
            refused: HashMap::new(),
            parked: Vec::new(),
            looks: JoinSet::new(),
            reread: false,
            tidy: false,
            expire: false,
            pace: Pace::default(),
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
                self.looks.spawn(look::look(self.shared.clone(), self.id.clone()));
            }
        }
    }

    fn hear(&mut self, message: Message, waiting: &mut Vec<Waiting>) {
        match message {
            Message::Decide(one) => {
                let Waiting { attempt, .. } = &*one;
                let known = self.refused.get(&attempt.job.uid).filter(|_| attempt.from.is_none());
                match known.filter(|(_, at)| at.elapsed() < SAME_CREATE) {
                    Some((refused, _)) => reply(one.reply, Verdict::Refused(refused.clone())),
                    None => waiting.push(*one),
                }
            }
            Message::Undo(request) => {
                self.undo.insert(request);
            }
            Message::Tidy => self.tidy = true,
            Message::Expire => self.expire = true,
        }
    }

    async fn looked(&mut self, look: Result<Look, Blind>) {
        match look {
            Ok(look) => {
                let (waiting, parked) = std::mem::take(&mut self.parked)
                    .into_iter()
                    .partition(|waiting: &Waiting| waiting.arrived <= look.began);
                self.parked = parked;
                self.serve(waiting, Some(look)).await;
            }
            Err(Blind::Missing(at)) => {
                if let Stop::Cannot(why) = self.make(at).await {
                    self.turn_away_parked(&why);
                }
            }
            Err(Blind::Cannot(why)) => self.turn_away_parked(&why),
        }
    }

    fn turn_away_parked(&mut self, why: &str) {
        let parked = std::mem::take(&mut self.parked);
        self.turn_away(parked, false, why);
    }

    /// A round, as often as others write first. With a look everybody is answered; without, those who are granted.
    async fn serve(&mut self, mut waiting: Vec<Waiting>, look: Option<Look>) {
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
                    self.answer(waiting, verdicts, look.is_some());
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
            tokio::time::sleep(self.pace.away(chance())).await;
        }
        self.tidy = false;
        self.turn_away(waiting, unsure, "other replicas wrote the ledger first, again and again");
    }

    fn answer(&mut self, waiting: Vec<Waiting>, verdicts: Vec<Verdict>, looked: bool) {
        self.refused.retain(|_, (_, at)| at.elapsed() < SAME_CREATE);
        let mut parked = Vec::new();
        for (one, verdict) in waiting.into_iter().zip(verdicts) {
            if verdict != Verdict::Granted && !looked {
                parked.push(one);
                continue;
            }
            let granted = verdict == Verdict::Granted && !one.attempt.dry_run;
            self.remember(&one.attempt, &verdict);
            let request = one.attempt.uid;
            if one.reply.send(verdict).is_err() && granted {
                self.undo.insert(request);
            }
        }
        self.park(parked);
    }

    /// Each try of a create has its own Job uid; an un-suspended Job keeps its uid and may try again.
    fn remember(&mut self, attempt: &Attempt, verdict: &Verdict) {
        let once = attempt.from.is_none() && !attempt.dry_run && !attempt.job.uid.is_empty();
        if let (Verdict::Refused(refused), true) = (verdict, once) {
            self.refused.insert(attempt.job.uid.clone(), (refused.clone(), Instant::now()));
        }
    }

    fn park(&mut self, waiting: Vec<Waiting>) {
        self.parked.extend(waiting);
        if self.parked.len() > PARKED {
            let rest = self.parked.split_off(PARKED);
            self.turn_away(rest, false, "too many Jobs wait for a decision");
        }
    }

    fn turn_away(&mut self, waiting: Vec<Waiting>, unsure: bool, why: &str) {
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
    fn forget(&mut self, one: &Waiting, unsure: bool) {
        if unsure && !one.attempt.dry_run {
            self.undo.insert(one.attempt.uid.clone());
        }
    }

    async fn once(&mut self, waiting: &[Waiting], look: Option<&Look>) -> Result<Vec<Verdict>, Stop> {
        let shared = self.shared.clone();
        let policies = shared.policies.current().clone();
        let namespaces = |name: &str| shared.policies.known_namespace(name);
        let rules = Rules { policies: &policies, namespaces: &namespaces };

        let (known, newest) = self.ledger(look).await?;
        let (known, (sight, jobs)) = match (self.see(&known, look).await, look) {
            (Some(seen), _) => (known, seen),
            // Somebody has written since, and beyond what the look shows. It may refuse by the ledger that it read itself,
            // and whoever it grants finds out by the write.
            (None, Some(look)) if !newest => (look.known.clone(), (Sight::List, look.view.jobs.clone())),
            (None, _) => return Err(Stop::Behind),
        };
        let gone = self.gone(&known, sight, look);
        let nothing = BTreeSet::new();
        let expired = look.map_or(&nothing, |look| &look.expired);
        let sources = Sources {
            rules,
            id: &self.id,
            spec: &known.ledger.spec,
            book: &known.book,
            sight,
            jobs: &jobs,
            gone: &gone,
            expired,
            old: &shared.memory.clocks(self.id.name()).older(OLD, shared.memory.now()),
            undone: &self.undo,
            now: Timestamp::now(),
        };
        let attempts: Vec<&Attempt> = waiting.iter().map(|one| &one.attempt).collect();
        let (verdicts, decided) = round(sources, &attempts).ok_or(Stop::Behind)?;

        let (before, after) = (&known.book, &decided.book);
        let granted = |standing: bool| {
            let attempts = attempts.iter().zip(&verdicts);
            let granted = attempts.filter(|(attempt, verdict)| {
                let uid = &attempt.uid;
                **verdict == Verdict::Granted
                    && !attempt.dry_run
                    && stands(after, uid)
                    && stands(before, uid) == standing
            });
            granted.count()
        };
        let (new, old) = (granted(false), granted(true));
        let undoes = self.undo.iter().any(|request| stands(before, request));
        let housekeeping = self.tidy || undoes || !expired.is_empty();
        if before != after && (new + old > 0 || housekeeping) {
            self.write(&known, after, new).await?;
        } else if old > 0 && !newest {
            // Nothing was written that would tell whether what it was granted by is still there.
            self.reread = true;
            return Err(Stop::Again(false));
        }
        let undone: BTreeSet<String> = std::mem::take(&mut self.undo);
        self.undo = undone.into_iter().filter(|request| stands(&decided.book, request)).collect();
        self.measure(rules, &decided);
        Ok(verdicts)
    }

    /// The newest ledger that is known here, and whether it was read for this try.
    async fn ledger(&mut self, look: Option<&Look>) -> Result<(Arc<Known>, bool), Stop> {
        let name = self.id.name();
        let watched = if self.reread { None } else { self.shared.memory.known(name) };
        let looked = look.map(|look| look.known.clone()).filter(|_| !self.reread);
        let newest = watched.into_iter().chain(looked).max_by_key(|known| known.version);
        if let Some(known) = newest {
            return Ok((known, false));
        }
        match look::read(&self.shared, name).await {
            Ok(known) => {
                self.reread = false;
                Ok((known, true))
            }
            Err(Blind::Missing(at)) => Err(self.make(at).await),
            Err(Blind::Cannot(why)) => Err(Stop::Cannot(why)),
        }
    }

    /// The Jobs, as far as the ledger (and the look, where there was one) asks for.
    async fn see(&self, known: &Known, look: Option<&Look>) -> Option<(Sight, Vec<Arc<JobSnapshot>>)> {
        let observed = known.book.observed_through;
        if let Some(look) = look {
            if known.version == look.known.version {
                return Some((Sight::List, look.view.jobs.clone()));
            }
            if look.view.version >= observed && look.view.version > 0 {
                return Some((Sight::Cache(look.view.version), look.view.jobs.clone()));
            }
        }
        // Nobody is refused by Jobs that are older than the look that was made for it.
        let needed = look.map_or(observed, |look| observed.max(look.view.version));
        let cache = &self.shared.cache;
        if cache.position().is_none_or(|position| position < needed) {
            cache.reaches(needed, BEHIND).await;
        }
        let (position, jobs) = cache.see(self.id.namespace()).filter(|(position, _)| *position >= needed)?;
        // Else a cluster limit could miss some of its Jobs.
        let known = |job: &Arc<JobSnapshot>| self.shared.policies.known_namespace(&job.namespace).is_some();
        let complete = jobs.iter().filter(|job| job.is_active()).all(known);
        complete.then_some((Sight::Cache(position), jobs))
    }

    /// Jobs of creates that are gone from the view. (An un-suspend says itself from when on its Job was there.)
    fn gone(&self, known: &Known, sight: Sight, look: Option<&Look>) -> Vec<Grave> {
        let until = match (sight, look) {
            (Sight::Cache(position), _) => position,
            (Sight::List, Some(look)) => look.view.version,
            (Sight::List, None) => return Vec::new(),
        };
        let creates = known.book.attempts().filter(|(_, _, granted)| granted.kind == Kind::Create);
        self.shared.cache.gone(creates.map(|(_, _, granted)| &*granted.job_uid), until)
    }

    async fn write(&mut self, known: &Known, book: &Book, grants: usize) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let name = self.id.name();
        let mut ledger = known.ledger.clone();
        ledger.spec.set(book);
        shared.metrics.ledger_writes.inc();
        if grants == 0 {
            shared.metrics.ledger_removals.inc();
        }
        self.pace.begins(grants, Instant::now());
        match shared.store.write(name, ledger).await {
            Write::Done(ledger) => {
                self.pace.done(Instant::now());
                match Known::of(*ledger) {
                    Ok(known) => shared.memory.note(name, &known),
                    Err(_) => self.reread = true,
                }
                Ok(())
            }
            Write::Conflict => {
                shared.metrics.ledger_conflicts.inc();
                self.pace.conflict(Instant::now());
                self.reread = true;
                Err(Stop::Again(false))
            }
            Write::Unknown(why) => {
                tracing::warn!(
                    ledger = name,
                    "it is not known whether it was written, reading it again: {why}"
                );
                self.reread = true;
                Err(Stop::Again(true))
            }
            Write::Refused(why) => Err(Stop::Cannot(why)),
        }
    }

    /// A ledger that is missing is made, unless it may have been deleted with something in it a moment ago.
    async fn make(&mut self, missing_at: Instant) -> Stop {
        let name = self.id.name();
        if self.shared.memory.came_since(name, missing_at) {
            self.reread = true;
            return Stop::Again(false);
        }
        let policies = self.shared.policies.current().clone();
        let policies = counting::could_grant(&policies, &self.id);
        if let Err(left) = self.shared.memory.missing(name, missing_at, policies) {
            return Stop::Cannot(ahead::missing(name, left));
        }
        // Whoever makes it: the next read tells.
        self.reread = true;
        match self.shared.store.make(name).await {
            Write::Refused(why) => Stop::Cannot(why),
            Write::Done(_) | Write::Conflict | Write::Unknown(_) => Stop::Again(false),
        }
    }

    fn measure(&self, rules: Rules<'_>, decided: &Decided) {
        let mut fullest: HashMap<&str, (usize, usize)> = HashMap::new();
        for (scope, active, pending) in decided.usage.counts() {
            // A scope is its limit, and perhaps a group: `<policy uid>/<limit>[/<group>]`.
            let end = scope.match_indices('/').nth(1).map_or(scope.len(), |(at, _)| at);
            let most = fullest.entry(&scope[..end]).or_default();
            *most = (*most).max((active, pending));
        }
        for policy in rules.policies.iter().filter(|policy| policy.enforced()) {
            for limit in &policy.spec.limits {
                let key = format!("{}/{}", policy.reference.uid, limit.name);
                if let Some((active, pending)) = fullest.get(key.as_str()) {
                    let (policy, ledger) = (policy.reference.to_string(), self.id.name());
                    let max = limit.max_active_jobs;
                    self.shared.metrics.limit(policy, &limit.name, ledger, *active, max, *pending);
                }
            }
        }
    }
}

fn stands(book: &Book, request: &str) -> bool {
    book.pending.values().any(|tries| tries.contains_key(request))
}

fn reply(to: oneshot::Sender<Verdict>, verdict: Verdict) {
    if to.send(verdict).is_err() {
        tracing::debug!("a caller is gone");
    }
}

/// The wall clock's last digits are random enough to keep replicas apart.
pub fn chance() -> u8 {
    let microseconds = Timestamp::now().subsec_nanosecond().unsigned_abs() / 1000;
    u8::try_from(microseconds % 256).unwrap_or(u8::MAX)
}
