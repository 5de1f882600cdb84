//! How long this process has known each attempt, by its own monotonic clock: neither the wall clock nor the clocks of
//! other replicas can be trusted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// After this time no attempt can store a Job, whatever is known about it: the apiserver gives up a request after 34 s, and no
/// apiserver sleeps for more than 20 s between admission and its write.
pub(crate) const EXPIRY: Duration = Duration::from_secs(60);
/// Within this time the apiserver asks about the same create for each policy: it asks for all of them at once, and waits
/// 10 s.
pub(crate) const SAME_CREATE: Duration = Duration::from_secs(12);
/// After this time an admitted create has usually stored its Job.
pub(crate) const USUAL_STORE_TIME: Duration = Duration::from_secs(2);

/// The monotonic clock by which attempts expire. Clones share their offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicU64>,
}

impl Clock {
    /// The current time of this clock.
    pub(crate) fn now(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Moves the clock forward by whole milliseconds; for tests of what takes minutes.
    pub fn advance(&self, time: Duration) {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.offset_ms.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

/// When each attempt of a ledger was first seen, by `request.uid`, or each of its refusals, by the Job's uid.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttemptAges(HashMap<String, Instant>);

impl AttemptAges {
    /// Adds those that are new and drops those that are no longer among `keys`.
    pub(crate) fn update<'a>(&mut self, keys: impl Iterator<Item = &'a str>, now: Instant) {
        self.0 = keys.map(|key| (key.to_owned(), self.0.get(key).copied().unwrap_or(now))).collect();
    }

    /// Those that are older than `age`, with their ages.
    pub(crate) fn older(&self, age: Duration, now: Instant) -> BTreeMap<String, Duration> {
        let ages = self.0.iter().map(|(key, since)| (key, now.saturating_duration_since(*since)));
        ages.filter(|(_, own)| *own > age).map(|(key, own)| (key.clone(), own)).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}
