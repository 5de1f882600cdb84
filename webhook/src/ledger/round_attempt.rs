//! One try of a round: what is known, what is decided by it, and the write that makes it so.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::{AttemptKind, LedgerContents},
};

use crate::ledger::actor::{ANY, DecisionRequest, LedgerActor};
use crate::{
    cache::tombstones::JobTombstone,
    ledger::{
        attempt_age::OLD,
        client::WriteResult,
        count,
        decide::{RoundDecision, SlotCount},
        fresh_read::{self, FreshRead, LedgerReadError},
        known_ledgers::KnownLedger,
        provision,
        resolve::ViewSource,
        round::{Sources, round},
        scope_cache::ScopeCache,
    },
    limit::{Attempt, Verdict, failure_backoff, scopes::LimitRules},
};

/// So long a round waits for the watch to tell what somebody else has seen already.
const BEHIND: Duration = Duration::from_millis(100);

/// Why a try of a round gave no answers.
pub(super) enum Stop {
    /// Somebody else wrote first, or nobody knows what became of the write (true): start over.
    Again(bool),
    /// What was watched is older than what somebody else has seen: only a look can tell.
    Behind,
    /// There is no point in trying again now.
    Cannot(String),
}

impl LedgerActor {
    pub(super) async fn once(
        &mut self,
        waiting: &[DecisionRequest],
        look: Option<&FreshRead>,
    ) -> Result<Vec<Verdict>, Stop> {
        let shared = self.shared.clone();
        let policies = shared.policies.current().clone();
        let namespaces = |name: &str| shared.policies.known_namespace(name);
        let rules = LimitRules { policies: &policies, namespaces: &namespaces };

        let (known, newest) = self.ledger(look).await?;
        let (known, (view_source, jobs)) = match (self.see(&known, look).await, look) {
            (Some(seen), _) => (known, seen),
            // Somebody has written since, and beyond what the look shows. It may refuse by the ledger that it went by, and
            // whoever it grants finds out by the write.
            (None, Some(look)) if !newest && self.is_new(&look.known) => {
                (look.known.clone(), (look.view_source, look.view.jobs.clone()))
            }
            (None, _) => return Err(Stop::Behind),
        };
        let unread = look.is_some_and(|look| !look.read && look.known.version != known.version);
        if unread && !known.book.pending.is_empty() {
            return Err(Stop::Behind);
        }
        let gone = self.gone(&known, view_source, look);
        let attempts: Vec<&Attempt> = waiting.iter().map(|one| &one.attempt).collect();
        // The Jobs of a LIST are nobody else's, and would only be kept for nothing.
        let mut of_list = ScopeCache::default();
        let found = if view_source == ViewSource::List { &mut of_list } else { &mut self.found };
        found.begin(&policies, jobs.len());
        let tried: HashSet<&str> = known.book.attempts().map(|(_, _, granted)| &*granted.job_uid).collect();
        let seen = found.seen(rules, &self.id, &jobs, &tried);
        // Of the cluster's ledger nobody waits after failures.
        let waits = attempts.iter().filter(|_| self.id.namespace().is_some());
        let groups = waits.filter_map(|attempt| failure_backoff::group(rules, &attempt.job)).collect();
        let runs = found.runs(rules, &jobs, &groups);
        let nothing = BTreeSet::new();
        let expired = look.map_or(&nothing, |look| &look.expired);
        let sources = Sources {
            rules,
            id: &self.id,
            spec: &known.ledger.spec,
            book: &known.book,
            view_source,
            seen: &seen,
            runs: &runs,
            gone: &gone,
            expired,
            old: &shared.known_ledgers.attempt_ages(self.id.name()).older(OLD, shared.known_ledgers.now()),
            revoked: &self.undo,
            now: Timestamp::now(),
        };
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
            self.outdated = ANY;
            return Err(Stop::Again(false));
        }
        let revoked: BTreeSet<String> = std::mem::take(&mut self.undo);
        self.undo = revoked.into_iter().filter(|request| stands(&decided.book, request)).collect();
        self.measure(rules, &decided);
        Ok(verdicts)
    }

    /// The newest ledger that is known here, and whether it was read for this try.
    async fn ledger(&mut self, look: Option<&FreshRead>) -> Result<(Arc<KnownLedger>, bool), Stop> {
        let name = self.id.name();
        let known =
            self.shared.known_ledgers.latest(name).into_iter().chain(look.map(|look| look.known.clone()));
        let newest = known.max_by_key(|known| known.version);
        // After somebody else's write the watch has told of that, as a rule, by the time that it is this one's turn again.
        if let Some(known) = newest.filter(|known| self.is_new(known)) {
            return Ok((known, false));
        }
        match fresh_read::read(&self.shared, name).await {
            Ok(known) => {
                self.outdated = None;
                Ok((known, true))
            }
            Err(LedgerReadError::Missing(at)) => Err(self.make(at).await),
            Err(LedgerReadError::Failed(why)) => Err(Stop::Cannot(why)),
        }
    }

    fn is_new(&self, known: &KnownLedger) -> bool {
        self.outdated.is_none_or(|version| known.version > version)
    }

    /// The Jobs, as far as the ledger (and the look, where there was one) asks for.
    async fn see(
        &self,
        known: &KnownLedger,
        look: Option<&FreshRead>,
    ) -> Option<(ViewSource, Vec<Arc<JobSnapshot>>)> {
        let observed = known.book.observed_through;
        if let Some(look) = look {
            if known.version == look.known.version {
                return Some((look.view_source, look.view.jobs.clone()));
            }
            if look.view.version >= observed && look.view.version > 0 {
                return Some((ViewSource::Cache(look.view.version), look.view.jobs.clone()));
            }
            // The watch may not have told yet of what was fetched.
            if look.view_source != ViewSource::List {
                return None;
            }
        }
        // Nobody is refused by Jobs that are older than the look that was made for it.
        let needed = look.map_or(observed, |look| observed.max(look.view.version));
        let cache = &self.shared.cache;
        if cache.position().is_none_or(|position| position < needed) {
            cache.wait_for(needed, BEHIND).await;
        }
        let (position, jobs) =
            cache.snapshot(self.id.namespace()).filter(|(position, _)| *position >= needed)?;
        // Else a cluster limit could miss some of its Jobs.
        let known = |job: &Arc<JobSnapshot>| self.shared.policies.known_namespace(&job.namespace).is_some();
        let complete = jobs.iter().filter(|job| job.is_active()).all(known);
        complete.then_some((ViewSource::Cache(position), jobs))
    }

    /// Jobs of creates that are gone from the view. (An un-suspend says itself from when on its Job was there.)
    fn gone(
        &self,
        known: &KnownLedger,
        view_source: ViewSource,
        look: Option<&FreshRead>,
    ) -> Vec<JobTombstone> {
        let until = match (view_source, look) {
            (ViewSource::Cache(position), _) => position,
            (ViewSource::List, Some(look)) => look.view.version,
            (ViewSource::List, None) => return Vec::new(),
        };
        let creates = known.book.attempts().filter(|(_, _, granted)| granted.kind == AttemptKind::Create);
        self.shared.cache.deleted_jobs(creates.map(|(_, _, granted)| &*granted.job_uid), until)
    }

    async fn write(&mut self, known: &KnownLedger, book: &LedgerContents, grants: usize) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let name = self.id.name();
        let mut ledger = known.ledger.clone();
        ledger.spec.set(book);
        shared.metrics.ledger_writes.inc();
        if grants == 0 {
            shared.metrics.ledger_removals.inc();
        }
        self.pace.begins(grants, Instant::now());
        match shared.ledger_client.replace(name, ledger).await {
            WriteResult::Written(ledger) => {
                self.pace.done(Instant::now());
                match KnownLedger::parse(*ledger) {
                    Ok(known) => shared.known_ledgers.record(name, &known),
                    Err(_) => self.outdated = ANY,
                }
                Ok(())
            }
            WriteResult::Conflict => {
                shared.metrics.ledger_conflicts.inc();
                shared.known_ledgers.record_conflict(name);
                self.pace.conflict(Instant::now());
                self.outdated = Some(known.version);
                Err(Stop::Again(false))
            }
            WriteResult::Unknown(why) => {
                tracing::warn!(
                    ledger = name,
                    "it is not known whether it was written, reading it again: {why}"
                );
                self.outdated = ANY;
                Err(Stop::Again(true))
            }
            WriteResult::Rejected(why) => Err(Stop::Cannot(why)),
        }
    }

    /// A ledger that is missing is made, unless it may have been deleted with something in it a moment ago.
    pub(super) async fn make(&mut self, missing_at: Instant) -> Stop {
        let name = self.id.name();
        if self.shared.known_ledgers.appeared_since(name, missing_at) {
            self.outdated = ANY;
            return Stop::Again(false);
        }
        let policies = self.shared.policies.current().clone();
        let policies = count::could_grant(&policies, &self.id);
        if let Err(left) = self.shared.known_ledgers.may_recreate(name, missing_at, policies) {
            return Stop::Cannot(provision::missing(name, left));
        }
        // Whoever makes it: the next read tells.
        self.outdated = ANY;
        match self.shared.ledger_client.create_empty(name).await {
            WriteResult::Rejected(why) => Stop::Cannot(why),
            WriteResult::Written(_) | WriteResult::Conflict | WriteResult::Unknown(_) => Stop::Again(false),
        }
    }

    fn measure(&self, rules: LimitRules<'_>, decided: &RoundDecision) {
        for policy in rules.policies.iter().filter(|policy| policy.enforced()) {
            for limit in &policy.spec.limits {
                let key = format!("{}/{}", policy.reference.uid, limit.name);
                if let Some(SlotCount { active, pending }) = decided.fullest.get(&key).copied() {
                    let (policy, ledger) = (policy.reference.to_string(), self.id.name());
                    let max = limit.max_active_jobs;
                    self.shared.metrics.limit(policy, &limit.name, ledger, active, max, pending);
                }
            }
        }
    }
}

fn stands(book: &LedgerContents, request: &str) -> bool {
    book.pending.values().any(|tries| tries.contains_key(request))
}
