//! Since when this process has known each attempt, on its own monotonic clock: other replicas' clocks, and the wall's, are
//! nothing to go by.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use job_handler_shared::ledger::crd::LedgerContents;

/// After this long an attempt can lead to nothing new: the apiserver gives a request up after 34 s, and none sleeps more
/// than 20 s between admission and its write.
pub const EXPIRY: Duration = Duration::from_secs(60);
/// After this long a create that led to a Job has led to it, as a rule.
pub const OLD: Duration = Duration::from_secs(2);

/// The monotonic clock by which attempts run out; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset: Arc<AtomicU64>,
}

impl Clock {
    /// By this clock.
    pub fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.offset.load(Ordering::Relaxed))
    }

    /// Lets it go offset (milliseconds count): for tests of what takes minutes.
    pub fn advance(&self, time: Duration) {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.offset.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

/// When each attempt was seen first, by `request.uid`.
#[derive(Clone, Debug, Default)]
pub struct AttemptAges(HashMap<String, Instant>);

impl AttemptAges {
    /// Starts a clock for each attempt that is new, and forgets those that are no longer there.
    pub fn note(&mut self, book: &LedgerContents, now: Instant) {
        let mut known = HashMap::with_capacity(self.0.len());
        for (_, request, _) in book.attempts() {
            let since = self.0.get(request).copied().unwrap_or(now);
            known.insert(request.to_owned(), since);
        }
        self.0 = known;
    }

    /// Attempts known for longer than `age`.
    pub fn older(&self, age: Duration, now: Instant) -> BTreeSet<String> {
        let is_older = |since: &Instant| now.saturating_duration_since(*since) > age;
        self.0.iter().filter(|(_, since)| is_older(since)).map(|(request, _)| request.clone()).collect()
    }

    /// How many attempts are known.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}
