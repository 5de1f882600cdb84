//! How long a ledger's actor gathers requests before it writes. One write can contain any number of grants, so under load
//! a few large writes cost less than many small ones, each of which makes another replica's write conflict.
//!
//! A single request is never delayed, and no request waits for longer than a few writes take.

use std::time::{Duration, Instant};

use job_handler_shared::process::jitter::full_jitter;

/// Least time between the starts of two writes while requests arrive faster than they are served.
const MIN_INTERVAL: Duration = Duration::from_millis(2);
/// Longest time between the starts of two writes that conflicts lead to while writes are fast.
const MAX_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time between the starts of two writes while writes are slow, in writes.
const MAX_INTERVAL_IN_WRITES: u32 = 4;
/// Upper bound of every delay, however slow writes are.
const MAX_DELAY: Duration = Duration::from_millis(500);

/// The write rate of one ledger in this process.
#[derive(Clone, Debug)]
pub(crate) struct BatchingDelay {
    /// Time between the starts of two writes.
    interval: Duration,
    last_write: Option<Instant>,
    /// Whether the last write contained the grants of several requests.
    last_was_batch: bool,
    /// How long a write takes: a moving average.
    write_time: Duration,
}

impl Default for BatchingDelay {
    fn default() -> Self {
        Self { interval: MIN_INTERVAL, last_write: None, last_was_batch: false, write_time: Duration::ZERO }
    }
}

impl BatchingDelay {
    /// How long to gather further requests while `waiting` requests wait.
    pub(crate) fn delay(&self, waiting: usize, now: Instant) -> Duration {
        match self.last_write {
            Some(last) if self.last_was_batch || waiting > 1 => {
                self.interval.saturating_sub(now.saturating_duration_since(last))
            }
            _ => Duration::ZERO,
        }
    }

    /// A write with the grants of so many requests starts.
    pub(crate) fn write_started(&mut self, grants: usize, now: Instant) {
        self.last_write = Some(now);
        self.last_was_batch = grants > 1;
    }

    /// The write was stored: the interval shrinks in small steps.
    pub(crate) fn write_stored(&mut self, now: Instant) {
        self.measure(now);
        self.interval = (self.interval * 7 / 8).max(self.min_interval());
    }

    /// The write conflicted with another replica's: the interval doubles.
    pub(crate) fn write_conflicted(&mut self, now: Instant) {
        self.measure(now);
        self.interval = (self.interval * 2).min(self.max_interval());
    }

    /// How long to wait before the next attempt, with jitter: usually until the watch delivers the version that won.
    pub(crate) fn retry_delay(&self) -> Duration {
        Duration::from_millis(1) + full_jitter(self.write_time.clamp(MIN_INTERVAL, MAX_INTERVAL))
    }

    /// How long `writes` writes of other replicas take, including their watch events.
    pub(crate) fn time_of_writes(&self, writes: u32) -> Duration {
        (self.write_time * 5 / 4).saturating_mul(writes).min(MAX_DELAY)
    }

    fn measure(&mut self, now: Instant) {
        if let Some(last) = self.last_write {
            let took = now.saturating_duration_since(last);
            self.write_time = if self.write_time.is_zero() { took } else { (self.write_time * 7 + took) / 8 };
        }
    }

    fn min_interval(&self) -> Duration {
        self.write_time.clamp(MIN_INTERVAL, MAX_DELAY)
    }

    fn max_interval(&self) -> Duration {
        (self.write_time * MAX_INTERVAL_IN_WRITES).clamp(MAX_INTERVAL, MAX_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_request_is_not_delayed_and_conflicts_make_writes_rarer() {
        let mut batching = BatchingDelay::default();
        let now = Instant::now();
        assert_eq!(batching.delay(50, now), Duration::ZERO, "there was no write a moment ago");
        batching.write_started(1, now);
        assert_eq!(batching.delay(1, now), Duration::ZERO);
        assert_eq!(batching.delay(2, now), MIN_INTERVAL);
        batching.write_started(9, now);
        assert_eq!(batching.delay(1, now + MIN_INTERVAL / 2), MIN_INTERVAL / 2, "more are about to arrive");
        assert_eq!(batching.delay(1, now + MIN_INTERVAL), Duration::ZERO);
        for _ in 0..9 {
            batching.write_conflicted(now);
            assert!(batching.retry_delay() <= MAX_INTERVAL + Duration::from_millis(1));
        }
        assert_eq!(batching.delay(1, now), MAX_INTERVAL);
        for _ in 0..99 {
            batching.write_stored(now);
        }
        assert_eq!(batching.delay(1, now), MIN_INTERVAL);
    }

    #[test]
    fn while_writes_are_slow_the_delay_is_measured_in_writes() {
        let mut batching = BatchingDelay::default();
        let now = Instant::now();
        let slow = Duration::from_millis(80);
        batching.write_started(9, now);
        batching.write_stored(now + slow);
        assert_eq!(batching.delay(9, now), slow);
        for _ in 0..9 {
            batching.write_conflicted(now + slow);
        }
        assert_eq!(batching.delay(9, now), slow * MAX_INTERVAL_IN_WRITES);
        assert_eq!(batching.time_of_writes(2), slow * 5 / 2);
        assert_eq!(batching.time_of_writes(100), MAX_DELAY);
    }
}
