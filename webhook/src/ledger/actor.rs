//! The one task of a process that decides by a ledger. All who wait share a round.
//!
//! Read the ledger; list the Jobs; decide; write the ledger if it is still as it was read; only then answer. Whoever comes
//! while a round is under way waits for the next one, so every LIST begins after the request came: a Job that finished a
//! moment ago never causes a refusal.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::ledger::{Book, Granted};
use tokio::sync::{mpsc, oneshot};

use super::{
    clocks::{EXPIRY, OLD},
    counting::{self, LedgerId},
    decide::Decided,
    limiter::Shared,
    resolve::{Sight, came_to_nothing},
    round::{Sources, round},
    store::Write,
};
use crate::{
    limit::{Attempt, Refused, Verdict},
    list::{self, View},
    slots::Rules,
};

/// A LIST that takes longer helps nobody: its callers are about to give up.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Writes of other replicas that one round gives way to.
const TRIES: u32 = 20;
/// A second webhook entry asks about the same create within this time, and has to be answered alike.
const SAME_CREATE: Duration = Duration::from_secs(10);

/// What an actor is told.
#[derive(Debug)]
pub enum Message {
    /// Decide.
    Decide(Box<Waiting>),
    /// A grant reached nobody: take it back.
    Undo(String),
    /// Attempts are old: see what became of them.
    Tidy,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiting {
    /// For what.
    pub attempt: Attempt,
    /// The answer goes there. Closed = nobody hears it any more.
    pub reply: oneshot::Sender<Verdict>,
}

/// Decides by one ledger.
pub struct Actor {
    /// Which.
    pub id: LedgerId,
    /// What is to be done.
    pub inbox: mpsc::Receiver<Message>,
    /// What all actors share.
    pub shared: Arc<Shared>,
    /// Grants that reached nobody, or may have been written without anybody knowing.
    pub undo: BTreeSet<String>,
    /// What was refused a moment ago, by the Job's uid.
    pub refused: HashMap<String, (Refused, Instant)>,
}

/// Why a try of a round gave no answers.
enum Stop {
    /// Somebody else wrote first, or nobody knows what became of the write (true): start over.
    Again(bool),
    /// There is no point in trying again now.
    Cannot(String),
}

impl Actor {
    /// Serves until nobody can ask any more.
    pub async fn run(mut self) {
        while let Some(first) = self.inbox.recv().await {
            let mut waiting = Vec::new();
            self.hear(first, &mut waiting);
            self.round(waiting).await;
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
            Message::Tidy => {}
        }
    }

    async fn round(&mut self, mut waiting: Vec<Waiting>) {
        // Some write of this round may have been done, or be done yet.
        let mut unsure = false;
        for n in 0..TRIES {
            while let Ok(message) = self.inbox.try_recv() {
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
            if n > 0 && waiting.is_empty() {
                return;
            }
            match self.once(&waiting).await {
                Ok(verdicts) => return self.answer(waiting, verdicts),
                Err(Stop::Again(lost)) => unsure |= lost,
                Err(Stop::Cannot(why)) => return self.turn_away(waiting, unsure, &why),
            }
            // Jitter, so that replicas do not meet again; the wall clock's last digits are random enough for that.
            let spread = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() / 1000 % 16);
            tokio::time::sleep(Duration::from_millis(2 + spread * u64::from(n.min(4) + 1))).await;
        }
        self.turn_away(waiting, unsure, "other replicas wrote the ledger first, again and again");
    }

    fn answer(&mut self, waiting: Vec<Waiting>, verdicts: Vec<Verdict>) {
        for (one, verdict) in waiting.into_iter().zip(verdicts) {
            let granted = verdict == Verdict::Granted && !one.attempt.dry_run;
            let request = one.attempt.uid;
            if one.reply.send(verdict).is_err() && granted {
                self.undo.insert(request);
            }
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
            let verdict = Verdict::Unavailable { why: why.to_owned(), retry_after_seconds: 1 };
            reply(one.reply, verdict);
        }
    }

    /// It will not be granted; if it may stand in the ledger, it is taken out later.
    fn forget(&mut self, one: &Waiting, unsure: bool) {
        if unsure && !one.attempt.dry_run {
            self.undo.insert(one.attempt.uid.clone());
        }
    }

    async fn once(&mut self, waiting: &[Waiting]) -> Result<Vec<Verdict>, Stop> {
        let shared = self.shared.clone();
        let name = self.id.name().to_owned();
        let policies = shared.policies.current().clone();
        let namespaces = |name: &str| shared.policies.known_namespace(name);
        let rules = Rules { policies: &policies, namespaces: &namespaces };

        let Some(mut ledger) = shared.store.read(&name).await.map_err(Stop::Cannot)? else {
            return Err(self.make(rules).await);
        };
        let book =
            ledger.spec.book().map_err(|error| Stop::Cannot(format!("the JobLedger {name}: {error}")))?;
        // Before the LIST begins: what has run out by now can show in it only if it came to something.
        let read = Instant::now();
        let clocks = shared.memory.read(&name, &book, read);
        let view = self.look(&shared).await.map_err(Stop::Cannot)?;

        let versions: HashMap<&str, u64> =
            view.jobs.iter().map(|job| (&*job.uid, counting::version(job))).collect();
        let nothing = |granted: &Granted| came_to_nothing(granted, versions.get(&*granted.job_uid).copied());
        let mut expired = clocks.older(EXPIRY, read);
        let dead = book.attempts().filter(|(_, _, granted)| nothing(granted));
        let dead: BTreeSet<&str> = dead.map(|(_, request, _)| request).collect();
        expired.retain(|request| dead.contains(&**request));
        let sources = Sources {
            rules,
            id: &self.id,
            spec: &ledger.spec,
            book: &book,
            sight: Sight::List,
            jobs: &view.jobs,
            expired: &expired,
            old: &clocks.older(OLD, read),
            undone: &self.undo,
            now: Timestamp::now(),
        };
        let attempts: Vec<&Attempt> = waiting.iter().map(|one| &one.attempt).collect();
        // Never None: a LIST suffices for every ledger.
        let (verdicts, decided) = round(sources, &attempts).ok_or(Stop::Again(false))?;
        if decided.book != book {
            ledger.spec.set(&decided.book);
            shared.metrics.ledger_writes.inc();
            match shared.store.write(&name, &ledger).await {
                Write::Done => {
                    shared.memory.read(&name, &decided.book, Instant::now());
                }
                Write::Conflict => {
                    shared.metrics.ledger_conflicts.inc();
                    return Err(Stop::Again(false));
                }
                Write::Unknown(why) => {
                    tracing::warn!(
                        ledger = name,
                        "it is not known whether it was written, reading it again: {why}"
                    );
                    return Err(Stop::Again(true));
                }
                Write::Refused(why) => return Err(Stop::Cannot(why)),
            }
        }
        let known: BTreeSet<String> = std::mem::take(&mut self.undo);
        self.undo = known.into_iter().filter(|request| stands(&decided.book, request)).collect();
        self.measure(rules, &decided);
        self.remember(waiting, &verdicts);
        Ok(verdicts)
    }

    /// A ledger that is missing is made, unless it may have been deleted with something in it a moment ago.
    async fn make(&self, rules: Rules<'_>) -> Stop {
        let name = self.id.name();
        let policies = rules.policies.iter().map(|policy| policy.reference.uid.as_str());
        if let Err(left) = self.shared.memory.missing(name, policies, Instant::now()) {
            return Stop::Cannot(format!(
                "the JobLedger {name} is missing; what was granted by it may still land, so a new one is made in {} s",
                left.as_secs() + 1
            ));
        }
        match self.shared.store.make(name).await {
            Write::Refused(why) => Stop::Cannot(why),
            // Whoever made it: the next read tells.
            Write::Done | Write::Conflict | Write::Unknown(_) => Stop::Again(false),
        }
    }

    /// A view whose namespaces are all known, else a cluster limit could miss some of its Jobs.
    async fn look(&self, shared: &Shared) -> Result<View, String> {
        shared.metrics.consistent_reads.inc();
        let list = list::jobs(&shared.client, self.id.namespace().map(str::to_owned));
        let view = match tokio::time::timeout(LIST_TIMEOUT, list).await {
            Ok(view) => view.map_err(|error| error.to_string())?,
            Err(_) => return Err("the apiserver did not answer in time".to_owned()),
        };
        for job in view.jobs.iter().filter(|job| job.is_active()) {
            if shared.policies.namespace(&job.namespace).await.is_none() {
                return Err(format!("the namespace {} is not known yet", job.namespace));
            }
        }
        Ok(view)
    }

    /// Each try of a create has its own Job uid; an un-suspended Job keeps its uid and may try again.
    fn remember(&mut self, waiting: &[Waiting], verdicts: &[Verdict]) {
        self.refused.retain(|_, (_, at)| at.elapsed() < SAME_CREATE);
        for (Waiting { attempt, .. }, verdict) in waiting.iter().zip(verdicts) {
            let once = attempt.from.is_none() && !attempt.dry_run && !attempt.job.uid.is_empty();
            if let (Verdict::Refused(refused), true) = (verdict, once) {
                self.refused.insert(attempt.job.uid.clone(), (refused.clone(), Instant::now()));
            }
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
