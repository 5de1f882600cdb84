//! The ledgers as this process knows them: their contents, how old each attempt is, and which ledgers exist.
//!
//! A missing ledger holds no attempts only if it never existed or was deleted more than a minute ago: a ledger that was
//! deleted by hand may have contained attempts whose Jobs are not stored yet. A process whose watch is younger than a minute
//! cannot distinguish these cases, unless the namespace, or every policy that may have granted an attempt, is newer than the watch.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::ledger::crd::{JobLedger, LedgerContents, LedgerError};
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    cache::{policies::Policies, reflector::WatchHandler},
    ledger::{
        attempt_age::{AttemptAges, Clock, EXPIRY, SAME_CREATE},
        ledger_id::LedgerId,
    },
};

/// A ledger counts as contended for this long after a write of this process conflicted.
const CONTENDED: Duration = Duration::from_secs(5);

/// One version of a ledger.
#[derive(Clone, Debug)]
pub struct KnownLedger {
    /// The object without its managed fields.
    pub ledger: JobLedger,
    /// Its parsed contents.
    pub contents: LedgerContents,
    /// Its resourceVersion; 0 if that is not a number, so that every other version is newer.
    pub version: u64,
}

impl KnownLedger {
    /// Parses a ledger.
    ///
    /// # Errors
    /// If any part of its contents is not understood.
    pub fn parse(mut ledger: JobLedger) -> Result<Arc<Self>, LedgerError> {
        // They are half of the object's size. An update without them leaves them as they are stored.
        ledger.metadata.managed_fields = None;
        let contents = ledger.spec.contents()?;
        let version = ledger.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Arc::new(Self { ledger, contents, version }))
    }
}

/// All ledgers that this process knows. The actors share it.
#[derive(Debug, Default)]
pub struct KnownLedgers {
    clock: Clock,
    table: Mutex<LedgerTable>,
    /// Changes after each list and whenever a ledger is deleted.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct LedgerTable {
    ledgers: HashMap<String, LedgerState>,
    /// When the list began that is being read.
    list_began: Option<Instant>,
    watch: Option<WatchStart>,
}

#[derive(Debug, Default)]
struct LedgerState {
    attempt_ages: AttemptAges,
    refusal_ages: AttemptAges,
    /// The newest version that could be parsed, and when it was recorded.
    latest: Option<(Arc<KnownLedger>, Instant)>,
    /// Since when the ledger is known to exist.
    exists_since: Option<Instant>,
    /// When an existing ledger was last found missing.
    deleted_at: Option<Instant>,
    /// When a write of this process last conflicted.
    conflict_at: Option<Instant>,
}

/// What existed when the watch began.
#[derive(Debug)]
struct WatchStart {
    since: Instant,
    /// Uids of the policies.
    policies: HashSet<String>,
    namespaces: HashSet<String>,
}

impl KnownLedgers {
    /// Measures ages with `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// The current time of the clock by which attempts expire.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Records a version that was read or written, unless a newer one is known.
    pub fn record(&self, ledger: &str, known: &Arc<KnownLedger>) {
        let now = self.now();
        self.table.lock().record(ledger, known, now);
    }

    /// The newest known version of a ledger.
    pub fn latest(&self, ledger: &str) -> Option<Arc<KnownLedger>> {
        self.latest_with_time(ledger).map(|(known, _)| known)
    }

    /// The newest known version of a ledger, and when it was recorded.
    pub(crate) fn latest_with_time(&self, ledger: &str) -> Option<(Arc<KnownLedger>, Instant)> {
        self.table.lock().ledgers.get(ledger)?.latest.clone()
    }

    /// Records that a write of a ledger conflicted with another replica's.
    pub(crate) fn record_conflict(&self, ledger: &str) {
        let now = self.now();
        if let Some(state) = self.table.lock().existing(ledger) {
            state.conflict_at = Some(now);
        }
    }

    /// Whether a write of this process conflicted a moment ago.
    pub fn is_contended(&self, ledger: &str) -> bool {
        let now = self.now();
        let table = self.table.lock();
        let conflict_at = table.ledgers.get(ledger).and_then(|state| state.conflict_at);
        conflict_at.is_some_and(|at| now.saturating_duration_since(at) < CONTENDED)
    }

    /// The ages of a ledger's attempts.
    pub(crate) fn attempt_ages(&self, ledger: &str) -> AttemptAges {
        self.table.lock().ledgers.get(ledger).map(|state| state.attempt_ages.clone()).unwrap_or_default()
    }

    /// Uids of the Jobs that a ledger holds as refused although no further call about them comes.
    pub(crate) fn old_refusals(&self, ledger: &str) -> BTreeSet<String> {
        let now = self.now();
        let table = self.table.lock();
        let state = table.ledgers.get(ledger);
        state
            .map(|state| state.refusal_ages.older(SAME_CREATE, now).into_keys().collect())
            .unwrap_or_default()
    }

    /// Records that a read that began at `read_at` did not find a ledger. Returns whether the ledger may be created, or
    /// how long that has to wait.
    ///
    /// `policies` are the uids of those that may have granted attempts in it.
    pub(crate) fn may_recreate<'a>(
        &self,
        ledger: &str,
        read_at: Instant,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Duration> {
        let now = self.now();
        let mut table = self.table.lock();
        // If the ledger was created after the read began, it was not deleted.
        if let Some(state) = table.existing(ledger)
            && state.exists_since.is_some_and(|since| since < read_at)
        {
            state.mark_deleted(now);
        }
        table.may_create(ledger, now, policies)
    }

    /// Whether a ledger is known to exist only since `at` or later.
    pub(crate) fn appeared_since(&self, ledger: &str, at: Instant) -> bool {
        let table = self.table.lock();
        table.ledgers.get(ledger).and_then(|state| state.exists_since).is_some_and(|since| since >= at)
    }

    /// Whether a ledger is missing and may be created before the first request.
    pub(crate) fn should_create<'a>(
        &self,
        ledger: &str,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        let (now, table) = (self.now(), self.table.lock());
        !table.exists(ledger) && table.may_create(ledger, now, policies).is_ok()
    }

    /// How long a missing ledger cannot be created yet.
    pub(crate) fn recreate_delay<'a>(
        &self,
        ledger: &str,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Option<Duration> {
        let (now, table) = (self.now(), self.table.lock());
        if table.exists(ledger) {
            return None;
        }
        table.may_create(ledger, now, policies).err()
    }

    /// Whether the ledgers were listed.
    pub(crate) fn is_synced(&self) -> bool {
        self.table.lock().watch.is_some()
    }

    /// Notifies of deleted ledgers and of each completed list.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Ledgers with attempts older than `age` whose latest version was recorded at least `quiet` ago.
    pub(crate) fn with_attempts_older_than(&self, age: Duration, quiet: Duration) -> Vec<String> {
        let now = self.now();
        let table = self.table.lock();
        let is_quiet = |state: &LedgerState| {
            state.latest.as_ref().is_none_or(|(_, at)| now.saturating_duration_since(*at) >= quiet)
        };
        let with_old = |state: &LedgerState| !state.attempt_ages.older(age, now).is_empty();
        let ledgers = table.ledgers.iter().filter(|(_, state)| is_quiet(state) && with_old(state));
        ledgers.map(|(name, _)| name.clone()).collect()
    }

    /// The number of attempts in all ledgers that are older than `age`.
    pub(crate) fn attempts_older_than(&self, age: Duration) -> usize {
        let now = self.now();
        self.table.lock().ledgers.values().map(|state| state.attempt_ages.older(age, now).len()).sum()
    }

    /// The number of attempts in all ledgers whose outcome is unknown.
    pub(crate) fn pending_attempts(&self) -> usize {
        self.table.lock().ledgers.values().map(|state| state.attempt_ages.count()).sum()
    }
}

impl LedgerTable {
    fn exists(&self, ledger: &str) -> bool {
        self.ledgers.get(ledger).is_some_and(|state| state.exists_since.is_some())
    }

    fn existing(&mut self, ledger: &str) -> Option<&mut LedgerState> {
        self.ledgers.get_mut(ledger).filter(|state| state.exists_since.is_some())
    }

    /// Whether no replica can have granted in a missing ledger within the last minute; else how long that is possible.
    fn may_create<'a>(
        &self,
        ledger: &str,
        now: Instant,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Duration> {
        let left = |since: Instant| EXPIRY.checked_sub(now.saturating_duration_since(since));
        let deleted_at = self.ledgers.get(ledger).and_then(|state| state.deleted_at);
        if let Some(left) = deleted_at.and_then(left) {
            return Err(left);
        }
        let Some(watch) = &self.watch else { return Err(EXPIRY) };
        let is_older = LedgerId::of_name(ledger).namespace().is_none_or(|own| watch.namespaces.contains(own));
        match left(watch.since) {
            Some(left) if is_older && policies.into_iter().any(|uid| watch.policies.contains(uid)) => {
                Err(left)
            }
            _ => Ok(()),
        }
    }

    fn record(&mut self, ledger: &str, known: &Arc<KnownLedger>, now: Instant) {
        let state = self.ledgers.entry(ledger.to_owned()).or_default();
        state.exists_since.get_or_insert(now);
        // The watch event of an own write arrives late.
        if state.latest.as_ref().is_some_and(|(newer, _)| newer.version >= known.version) {
            return;
        }
        state.attempt_ages.update(known.contents.attempts().map(|(_, request, _)| request), now);
        state.refusal_ages.update(known.contents.refused.keys().map(String::as_str), now);
        state.latest = Some((known.clone(), now));
    }

    fn record_watched(&mut self, ledger: JobLedger, now: Instant) {
        let name = ledger.name_any();
        match KnownLedger::parse(ledger) {
            Ok(known) => self.record(&name, &known, now),
            // The ledger exists nevertheless. The next round reads it again and reports what is wrong with it.
            Err(_) => {
                let state = self.ledgers.entry(name).or_default();
                state.latest = None;
                state.exists_since.get_or_insert(now);
            }
        }
    }
}

impl LedgerState {
    fn mark_deleted(&mut self, now: Instant) {
        let deleted_at = self.exists_since.map(|_| now).or(self.deleted_at);
        *self = Self { deleted_at, ..Self::default() };
    }
}

/// Applies the events of the ledgers' watch.
pub struct LedgerWatchHandler<'a> {
    /// Receives the ledgers.
    pub known_ledgers: &'a KnownLedgers,
    /// Which policies and namespaces exist when a list completes.
    pub policies: Policies,
}

impl WatchHandler<JobLedger> for LedgerWatchHandler<'_> {
    fn begin(&mut self) {
        let now = self.known_ledgers.now();
        self.known_ledgers.table.lock().list_began = Some(now);
    }

    fn replace(&mut self, all: Vec<JobLedger>) {
        let now = self.known_ledgers.now();
        let policies = self.policies.current().iter().map(|policy| policy.reference.uid.clone()).collect();
        let namespaces = self.policies.namespaces().into_iter().map(|(name, _)| name).collect();
        let names: HashSet<String> = all.iter().map(ResourceExt::name_any).collect();
        let mut table = self.known_ledgers.table.lock();
        // A ledger that was created since the list began need not be in it.
        let began = table.list_began.take().unwrap_or(now);
        for (name, state) in &mut table.ledgers {
            if !names.contains(name) && state.exists_since.is_some_and(|since| since < began) {
                state.mark_deleted(now);
            }
        }
        all.into_iter().for_each(|ledger| table.record_watched(ledger, now));
        // Between two watches ledgers may have been created and deleted unnoticed.
        table.watch = Some(WatchStart { since: now, policies, namespaces });
        drop(table);
        self.known_ledgers.changes.send_modify(|n| *n += 1);
    }

    fn apply(&mut self, ledger: JobLedger) {
        let now = self.known_ledgers.now();
        self.known_ledgers.table.lock().record_watched(ledger, now);
    }

    fn delete(&mut self, ledger: JobLedger) {
        let now = self.known_ledgers.now();
        if let Some(state) = self.known_ledgers.table.lock().ledgers.get_mut(&ledger.name_any()) {
            state.mark_deleted(now);
        }
        self.known_ledgers.changes.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests;
