//! What this process knows of ledgers by watching them: what is in them, since when it has known each attempt, and which
//! ledgers were there.
//!
//! A ledger that is missing holds no attempts only if it was never there, or went more than a minute ago: whoever deletes
//! one by hand deletes what was granted and has not landed yet. A process that has not watched for a minute knows of
//! neither, except where every policy that could have granted, or the namespace itself, came after it began to watch.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::ledger::crd::{JobLedger, LedgerContents, LedgerError};
use kube::ResourceExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::cache::{policies::Policies, reflector::WatchHandler};
use crate::ledger::{
    attempt_age::{AttemptAges, Clock, EXPIRY},
    count::LedgerId,
};

/// So long after a write that came too late a ledger is taken for one that several replicas want to write.
const CONTENDED: Duration = Duration::from_secs(5);

/// LedgerContext by all actors of a process.
#[derive(Debug, Default)]
pub struct KnownLedgers {
    clock: Clock,
    inner: Mutex<Inner>,
    /// LedgerTasks are gone, or all were listed anew.
    turns: watch::Sender<u64>,
}

/// A ledger as it was at some time: read, watched or written.
#[derive(Clone, Debug)]
pub struct KnownLedger {
    /// The object, without what only the apiserver needs.
    pub ledger: JobLedger,
    /// What is in it.
    pub book: LedgerContents,
    /// Its resourceVersion; 0 where it is no number: then it is older than any other.
    pub version: u64,
}

impl KnownLedger {
    /// ReadRateLimiter it.
    ///
    /// # Errors
    /// Where it is not understood in full.
    pub fn parse(mut ledger: JobLedger) -> Result<Arc<Self>, LedgerError> {
        // Half of its size. An update that does not state them leaves them to the apiserver.
        ledger.metadata.managed_fields = None;
        let book = ledger.spec.contents()?;
        let version = ledger.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Arc::new(Self { ledger, book, version }))
    }
}

#[derive(Debug, Default)]
struct Inner {
    clocks: HashMap<String, AttemptAges>,
    /// The newest of each that is known and understood, and when it was changed.
    known: HashMap<String, (Arc<KnownLedger>, Instant)>,
    /// LedgerTasks that are there, as far as is known, and since when that is.
    there: HashMap<String, Instant>,
    /// When a ledger was found to be no longer there.
    gone: HashMap<String, Instant>,
    /// When the list began that is being read.
    listing: Option<Instant>,
    /// When a write of a ledger came too late.
    lost: HashMap<String, Instant>,
    watching: Option<Watching>,
}

#[derive(Debug)]
struct Watching {
    since: Instant,
    /// Uids of the policies that were there before.
    policies: HashSet<String>,
    /// The namespaces that were.
    namespaces: HashSet<String>,
}

impl KnownLedgers {
    /// By this clock.
    pub fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// The clock by which attempts run out.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Takes note of a ledger as it was read or written.
    pub fn record(&self, ledger: &str, known: &Arc<KnownLedger>) {
        self.inner().record(ledger, known, self.now());
    }

    /// The newest that is known of a ledger.
    pub fn latest(&self, ledger: &str) -> Option<Arc<KnownLedger>> {
        self.latest_with_time(ledger).map(|(known, _)| known)
    }

    /// The same, and since when it has been known.
    pub fn latest_with_time(&self, ledger: &str) -> Option<(Arc<KnownLedger>, Instant)> {
        self.inner().known.get(ledger).cloned()
    }

    /// A write of a ledger came after somebody else's.
    pub fn record_conflict(&self, ledger: &str) {
        let (now, mut inner) = (self.now(), self.inner());
        if inner.there.contains_key(ledger) {
            inner.lost.insert(ledger.to_owned(), now);
        }
    }

    /// Whether that happened a moment ago.
    pub fn is_contended(&self, ledger: &str) -> bool {
        let now = self.now();
        self.inner().lost.get(ledger).is_some_and(|at| now.saturating_duration_since(*at) < CONTENDED)
    }

    /// The clocks of a ledger's attempts.
    pub fn attempt_ages(&self, ledger: &str) -> AttemptAges {
        self.inner().clocks.get(ledger).cloned().unwrap_or_default()
    }

    /// A ledger was found missing by a read that began at `at`. Whether it may be made; else how long that has to wait.
    ///
    /// `policies`: uids of those that could have granted in it.
    pub fn may_recreate<'a>(
        &self,
        ledger: &str,
        at: Instant,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Duration> {
        let now = self.now();
        let mut inner = self.inner();
        // Somebody else may have made it since: then it was not deleted.
        if inner.there.get(ledger).is_none_or(|since| *since < at) {
            inner.lose(ledger, now);
        }
        inner.may_make(ledger, now, policies)
    }

    /// Whether a ledger came since then, as far as is known.
    pub fn appeared_since(&self, ledger: &str, at: Instant) -> bool {
        self.inner().there.get(ledger).is_some_and(|since| *since >= at)
    }

    /// Whether a ledger may be made before anybody asks for it: it is not there, and was not.
    pub fn should_create<'a>(&self, ledger: &str, policies: impl IntoIterator<Item = &'a str>) -> bool {
        let (now, inner) = (self.now(), self.inner());
        !inner.there.contains_key(ledger) && inner.may_make(ledger, now, policies).is_ok()
    }

    /// Where a ledger is missing that must not be made yet: for how long.
    pub fn recreate_delay<'a>(
        &self,
        ledger: &str,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Option<Duration> {
        let (now, inner) = (self.now(), self.inner());
        if inner.there.contains_key(ledger) {
            return None;
        }
        inner.may_make(ledger, now, policies).err()
    }

    /// Whether the ledgers were seen once.
    pub fn is_synced(&self) -> bool {
        self.inner().watching.is_some()
    }

    /// Tells of ledgers that are gone, and of each time that all were seen.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// LedgerTasks with attempts that have been known for longer than `age`, and that nobody has written for `quiet`.
    pub fn with_attempts_older_than(&self, age: Duration, quiet: Duration) -> Vec<String> {
        let now = self.now();
        let inner = self.inner();
        let is_quiet = |ledger: &String| {
            inner.known.get(ledger).is_none_or(|(_, at)| now.saturating_duration_since(*at) >= quiet)
        };
        let with = inner.clocks.iter().filter(|(_, clocks)| !clocks.older(age, now).is_empty());
        with.map(|(ledger, _)| ledger).filter(|ledger| is_quiet(ledger)).cloned().collect()
    }

    /// Attempts of all ledgers without a known outcome.
    pub fn pending_attempts(&self) -> usize {
        self.inner().clocks.values().map(AttemptAges::count).sum()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl Inner {
    /// Nobody can have granted in it within the last minute; else how long that cannot be known yet.
    fn may_make<'a>(
        &self,
        ledger: &str,
        now: Instant,
        policies: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Duration> {
        let left = |since: Instant| EXPIRY.checked_sub(now.saturating_duration_since(since));
        if let Some(left) = self.gone.get(ledger).and_then(|at| left(*at)) {
            return Err(left);
        }
        let Some(watching) = &self.watching else { return Err(EXPIRY) };
        let known = LedgerId::of_name(ledger).namespace().is_none_or(|own| watching.namespaces.contains(own));
        match left(watching.since) {
            Some(left) if known && policies.into_iter().any(|uid| watching.policies.contains(uid)) => {
                Err(left)
            }
            _ => Ok(()),
        }
    }

    fn lose(&mut self, ledger: &str, now: Instant) {
        self.clocks.remove(ledger);
        self.known.remove(ledger);
        self.lost.remove(ledger);
        if self.there.remove(ledger).is_some() {
            self.gone.insert(ledger.to_owned(), now);
        }
    }

    fn record(&mut self, ledger: &str, known: &Arc<KnownLedger>, now: Instant) {
        self.there.entry(ledger.to_owned()).or_insert(now);
        // A watch tells of one's own writes late.
        if self.known.get(ledger).is_some_and(|(newer, _)| newer.version >= known.version) {
            return;
        }
        self.clocks.entry(ledger.to_owned()).or_default().note(&known.book, now);
        self.known.insert(ledger.to_owned(), (known.clone(), now));
    }

    fn see(&mut self, ledger: JobLedger, now: Instant) {
        let name = ledger.name_any();
        match KnownLedger::parse(ledger) {
            Ok(known) => self.record(&name, &known, now),
            // There it is all the same; whoever decides by it reads it again and says what is wrong with it.
            Err(_) => {
                self.known.remove(&name);
                self.there.entry(name).or_insert(now);
            }
        }
    }
}

/// Keeps a memory by a watch.
pub struct LedgerWatchHandler<'a> {
    /// What is kept.
    pub memory: &'a KnownLedgers,
    /// The policies of the moment.
    pub policies: Policies,
}

impl WatchHandler<JobLedger> for LedgerWatchHandler<'_> {
    fn begin(&mut self) {
        let now = self.memory.now();
        self.memory.inner().listing = Some(now);
    }

    fn replace(&mut self, all: Vec<JobLedger>) {
        let now = self.memory.now();
        let policies = self.policies.current().iter().map(|policy| policy.reference.uid.clone()).collect();
        let namespaces = self.policies.namespaces().into_iter().map(|(name, _)| name).collect();
        let mut inner = self.memory.inner();
        let names: HashSet<String> = all.iter().map(ResourceExt::name_any).collect();
        // One that came since the list began need not be in it.
        let began = inner.listing.take().unwrap_or(now);
        let lost = inner.there.iter().filter(|(name, since)| !names.contains(*name) && **since < began);
        let lost: Vec<String> = lost.map(|(name, _)| name.clone()).collect();
        for name in lost {
            inner.lose(&name, now);
        }
        all.into_iter().for_each(|ledger| inner.see(ledger, now));
        // Between two watches anything may have come and gone.
        inner.watching = Some(Watching { since: now, policies, namespaces });
        drop(inner);
        self.memory.turns.send_modify(|n| *n += 1);
    }

    fn apply(&mut self, ledger: JobLedger) {
        let now = self.memory.now();
        self.memory.inner().see(ledger, now);
    }

    fn delete(&mut self, ledger: JobLedger) {
        let now = self.memory.now();
        self.memory.inner().lose(&ledger.name_any(), now);
        self.memory.turns.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::set::PolicySet;

    use super::*;

    fn watcher(memory: &KnownLedgers) -> LedgerWatchHandler<'_> {
        LedgerWatchHandler { memory, policies: Policies::fixed(PolicySet::default(), []) }
    }

    fn ledger(name: &str) -> JobLedger {
        JobLedger::new(name, job_handler_shared::ledger::crd::JobLedgerSpec::empty())
    }

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_deleted_ledger_is_not_made_again_for_a_minute() {
        let clock = Clock::default();
        let memory = KnownLedgers::new(clock.clone());
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_err(), "nothing was watched yet");
        watcher(&memory).replace(vec![ledger("ci")]);
        assert!(
            memory.may_recreate("other", memory.now(), ["p"]).is_ok(),
            "the policy is new, so nobody granted by it before"
        );
        watcher(&memory).delete(ledger("ci"));
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_err());
        clock.advance(after(59));
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_err());
        clock.advance(after(2));
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_ok());
        // ScopeCache by a read, before the watch tells.
        memory.record("ci", &KnownLedger::parse(ledger("ci")).unwrap());
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_err());
        clock.advance(after(61));
        assert!(memory.may_recreate("ci", memory.now(), ["p"]).is_ok());
    }

    #[test]
    fn a_process_that_just_began_to_watch_knows_nothing_of_older_policies() {
        let clock = Clock::default();
        let memory = KnownLedgers::new(clock.clone());
        memory.inner().watching = Some(Watching {
            since: Instant::now(),
            policies: ["old".to_owned()].into(),
            namespaces: ["ci".to_owned()].into(),
        });
        assert!(memory.may_recreate("ci", memory.now(), ["old", "new"]).is_err());
        assert!(memory.may_recreate("ci", memory.now(), ["new"]).is_ok());
        clock.advance(after(61));
        assert!(memory.may_recreate("ci", memory.now(), ["old", "new"]).is_ok());
    }

    #[test]
    fn a_namespace_that_came_later_holds_no_older_grants_and_the_clusters_ledger_is_of_none() {
        let clock = Clock::default();
        let memory = KnownLedgers::new(clock.clone());
        memory.inner().watching = Some(Watching {
            since: Instant::now(),
            policies: ["old".to_owned()].into(),
            namespaces: ["ci".to_owned()].into(),
        });
        assert!(
            memory.should_create("later", ["old"])
                && !memory.should_create("ci", ["old"])
                && memory.should_create("ci", ["new"])
        );
        assert!(!memory.should_create("cluster.job-handler.io", ["old"]));
        memory.record("later", &KnownLedger::parse(ledger("later")).unwrap());
        assert!(!memory.should_create("later", ["old"]), "it is there");
        watcher(&memory).delete(ledger("later"));
        assert!(!memory.should_create("later", ["old"]), "it was there");
        let doubts = |ledger, by| memory.recreate_delay(ledger, [by]).is_some();
        assert!(doubts("later", "old") && doubts("ci", "old") && !doubts("ci", "new"));
        clock.advance(after(61));
        assert!(memory.should_create("later", ["old"]) && memory.should_create("ci", ["old"]));
        assert!(!doubts("later", "old") && !doubts("ci", "old"));
    }

    #[test]
    fn what_somebody_made_while_one_looked_was_not_deleted() {
        let clock = Clock::default();
        let memory = KnownLedgers::new(clock.clone());
        watcher(&memory).replace(vec![]);
        let looked = memory.now();
        watcher(&memory).begin();
        clock.advance(after(1));
        memory.record("ci", &KnownLedger::parse(ledger("ci")).unwrap());
        assert!(memory.may_recreate("ci", looked, ["new"]).is_ok());
        watcher(&memory).replace(vec![]);
        assert!(memory.latest("ci").is_some(), "a list that began before shows nothing of it");
        clock.advance(after(1));
        assert!(memory.may_recreate("ci", memory.now(), ["new"]).is_err(), "and now it is gone");
    }

    #[test]
    fn what_is_older_than_ones_own_write_changes_nothing() {
        let memory = KnownLedgers::default();
        let version = |version: u64| {
            let mut ledger = ledger("ci");
            ledger.metadata.resource_version = Some(version.to_string());
            ledger
        };
        memory.record("ci", &KnownLedger::parse(version(9)).unwrap());
        watcher(&memory).apply(version(8));
        assert_eq!(memory.latest("ci").unwrap().version, 9);
        let mut garbage = version(10);
        garbage.spec.fields.insert("format".into(), "?".into());
        watcher(&memory).apply(garbage);
        assert!(memory.latest("ci").is_none(), "it has to be read again");
    }
}
