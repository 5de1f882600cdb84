//! What this process knows of ledgers by watching them: since when it has known each attempt, and which ledgers were
//! there.
//!
//! A ledger that is missing holds no attempts only if it was never there, or went more than a minute ago: whoever deletes
//! one by hand deletes what was granted and has not landed yet. A process that has not watched for a minute knows of
//! neither, except where every policy that could have granted came after it began to watch.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use job_handler_shared::ledger::{Book, JobLedger};
use kube::ResourceExt;

use super::clocks::{Clocks, EXPIRY};
use crate::{mirror::Mirror, policies::Policies};

/// Shared by all actors of a process.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    clocks: HashMap<String, Clocks>,
    /// Ledgers that are there, as far as is known.
    there: HashSet<String>,
    /// When a ledger was found to be no longer there.
    gone: HashMap<String, Instant>,
    watching: Option<Watching>,
}

#[derive(Debug)]
struct Watching {
    since: Instant,
    /// Uids of the policies that were there before.
    policies: HashSet<String>,
}

impl Memory {
    /// Takes note of a ledger as it was read. Returns its clocks.
    pub fn read(&self, ledger: &str, book: &Book, now: Instant) -> Clocks {
        let mut inner = self.inner();
        inner.there.insert(ledger.to_owned());
        let clocks = inner.clocks.entry(ledger.to_owned()).or_default();
        clocks.note(book, now);
        clocks.clone()
    }

    /// A ledger was found missing. Whether it may be made; else how long that has to wait.
    ///
    /// `policies`: uids of those that could have granted in it.
    pub fn missing<'a>(
        &self,
        ledger: &str,
        policies: impl IntoIterator<Item = &'a str>,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut inner = self.inner();
        inner.lose(ledger, now);
        let left = |since: Instant| EXPIRY.checked_sub(now.saturating_duration_since(since));
        if let Some(left) = inner.gone.get(ledger).and_then(|at| left(*at)) {
            return Err(left);
        }
        let Some(watching) = &inner.watching else { return Err(EXPIRY) };
        match left(watching.since) {
            Some(left) if policies.into_iter().any(|uid| watching.policies.contains(uid)) => Err(left),
            _ => Ok(()),
        }
    }

    /// Ledgers with attempts that have been known for longer than `age`.
    pub fn with_older(&self, age: Duration, now: Instant) -> Vec<String> {
        let inner = self.inner();
        let with = inner.clocks.iter().filter(|(_, clocks)| !clocks.older(age, now).is_empty());
        with.map(|(ledger, _)| ledger.clone()).collect()
    }

    /// Attempts of all ledgers without a known outcome.
    pub fn attempts(&self) -> usize {
        self.inner().clocks.values().map(Clocks::count).sum()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn lose(&mut self, ledger: &str, now: Instant) {
        self.clocks.remove(ledger);
        if self.there.remove(ledger) {
            self.gone.insert(ledger.to_owned(), now);
        }
    }

    fn see(&mut self, ledger: &JobLedger, now: Instant) {
        let name = ledger.name_any();
        // One that cannot be read is there all the same; whoever decides by it will say what is wrong with it.
        let book = ledger.spec.book().unwrap_or_default();
        self.clocks.entry(name.clone()).or_default().note(&book, now);
        self.there.insert(name);
    }
}

/// Keeps a memory by a watch.
pub struct Watcher<'a> {
    /// What is kept.
    pub memory: &'a Memory,
    /// The policies of the moment.
    pub policies: Policies,
}

impl Mirror<JobLedger> for Watcher<'_> {
    fn replace(&mut self, all: Vec<JobLedger>) {
        let now = Instant::now();
        let policies = self.policies.current().iter().map(|policy| policy.reference.uid.clone()).collect();
        let mut inner = self.memory.inner();
        let names: HashSet<String> = all.iter().map(ResourceExt::name_any).collect();
        let lost: Vec<String> = inner.there.difference(&names).cloned().collect();
        for name in lost {
            inner.lose(&name, now);
        }
        all.iter().for_each(|ledger| inner.see(ledger, now));
        // Between two watches anything may have come and gone.
        inner.watching = Some(Watching { since: now, policies });
    }

    fn apply(&mut self, ledger: JobLedger) {
        self.memory.inner().see(&ledger, Instant::now());
    }

    fn delete(&mut self, ledger: JobLedger) {
        self.memory.inner().lose(&ledger.name_any(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::combine::PolicySet;

    use super::*;

    fn watcher(memory: &Memory) -> Watcher<'_> {
        Watcher { memory, policies: Policies::fixed(PolicySet::default(), []) }
    }

    fn ledger(name: &str) -> JobLedger {
        JobLedger::new(name, job_handler_shared::ledger::JobLedgerSpec::empty())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_deleted_ledger_is_not_made_again_for_a_minute() {
        let memory = Memory::default();
        let now = Instant::now();
        assert!(memory.missing("ci", ["p"], now).is_err(), "nothing was watched yet");
        watcher(&memory).replace(vec![ledger("ci")]);
        assert!(
            memory.missing("other", ["p"], now).is_ok(),
            "the policy is new, so nobody granted by it before"
        );
        watcher(&memory).delete(ledger("ci"));
        let now = Instant::now();
        assert!(memory.missing("ci", ["p"], now).is_err());
        assert!(memory.missing("ci", ["p"], now + 59 * SECOND).is_err());
        assert!(memory.missing("ci", ["p"], now + 61 * SECOND).is_ok());
        // Found by a read, before the watch tells.
        memory.read("ci", &Book::default(), now);
        assert!(memory.missing("ci", ["p"], now + 90 * SECOND).is_err());
        assert!(memory.missing("ci", ["p"], now + 151 * SECOND).is_ok());
    }

    #[test]
    fn a_process_that_just_began_to_watch_knows_nothing_of_older_policies() {
        let memory = Memory::default();
        memory.inner().watching =
            Some(Watching { since: Instant::now(), policies: ["old".to_owned()].into() });
        let now = Instant::now();
        assert!(memory.missing("ci", ["old", "new"], now).is_err());
        assert!(memory.missing("ci", ["new"], now).is_ok());
        assert!(memory.missing("ci", ["old", "new"], now + 61 * SECOND).is_ok());
    }
}
