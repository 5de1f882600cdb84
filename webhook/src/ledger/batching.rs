//! How long a ledger's actor gathers requests before it writes: every write of a ledger may hold any number of grants, so
//! under load few large ones cost everybody less than many small ones, of which each makes another replica's come too late.
//!
//! Who comes alone is never made to wait, and nobody waits for longer than a few writes take.

use job_handler_shared::process::jitter::full_jitter;
use std::time::{Duration, Instant};

/// Between the beginnings of two writes, where requests come faster than they are served.
const LEAST: Duration = Duration::from_millis(2);
/// The same where other replicas' writes keep coming first.
const MOST: Duration = Duration::from_millis(20);
/// Where writes are slow, waiting is counted in writes: this many at most.
const WRITES: u32 = 4;
/// But never longer than this.
const EVER: Duration = Duration::from_millis(500);

/// The pace of one ledger in this process.
#[derive(Clone, Debug)]
pub struct BatchingDelay {
    apart: Duration,
    last: Option<Instant>,
    crowded: bool,
    /// How long a write takes, on average over the last few.
    takes: Duration,
}

impl Default for BatchingDelay {
    fn default() -> Self {
        Self { apart: LEAST, last: None, crowded: false, takes: Duration::ZERO }
    }
}

impl BatchingDelay {
    /// How long to gather, where so many are waiting already.
    pub fn gather(&self, waiting: usize, now: Instant) -> Duration {
        match self.last {
            Some(last) if self.crowded || waiting > 1 => {
                self.apart.saturating_sub(now.saturating_duration_since(last))
            }
            _ => Duration::ZERO,
        }
    }

    /// A write for so many requests begins.
    pub fn begins(&mut self, requests: usize, now: Instant) {
        self.last = Some(now);
        self.crowded = requests > 1;
    }

    /// It was done. By small steps back to the quicker pace.
    pub fn done(&mut self, now: Instant) {
        self.ends(now);
        self.apart = (self.apart * 7 / 8).max(self.least());
    }

    /// Another replica's came first.
    pub fn conflict(&mut self, now: Instant) {
        self.ends(now);
        self.apart = (self.apart * 2).min(self.most());
    }

    /// How long to stay away before the next try, with jitter: until the watch tells what was written, as a rule.
    pub fn away(&self) -> Duration {
        let most = self.takes.clamp(LEAST, MOST);
        Duration::from_millis(1) + full_jitter(most)
    }

    /// How long so many writes of others take, with their news.
    pub fn writes(&self, number: u32) -> Duration {
        (self.takes * 5 / 4).saturating_mul(number).min(EVER)
    }

    fn ends(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let took = now.saturating_duration_since(last);
            self.takes = if self.takes.is_zero() { took } else { (self.takes * 7 + took) / 8 };
        }
    }

    fn least(&self) -> Duration {
        self.takes.clamp(LEAST, EVER)
    }

    fn most(&self) -> Duration {
        (self.takes * WRITES).clamp(MOST, EVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_does_not_wait_and_conflicts_make_writes_rarer() {
        let mut pace = BatchingDelay::default();
        let now = Instant::now();
        assert_eq!(pace.gather(50, now), Duration::ZERO, "nothing was written a moment ago");
        pace.begins(1, now);
        assert_eq!(pace.gather(1, now), Duration::ZERO);
        assert_eq!(pace.gather(2, now), LEAST);
        pace.begins(9, now);
        assert_eq!(pace.gather(1, now + LEAST / 2), LEAST / 2, "others are about to come");
        assert_eq!(pace.gather(1, now + LEAST), Duration::ZERO);
        for _ in 0..9 {
            pace.conflict(now);
            assert!(pace.away() <= MOST + Duration::from_millis(1));
        }
        assert_eq!(pace.gather(1, now), MOST);
        for _ in 0..99 {
            pace.done(now);
        }
        assert_eq!(pace.gather(1, now), LEAST);
    }

    #[test]
    fn where_writes_are_slow_waiting_is_counted_in_writes() {
        let mut pace = BatchingDelay::default();
        let now = Instant::now();
        let slow = Duration::from_millis(80);
        pace.begins(9, now);
        pace.done(now + slow);
        assert_eq!(pace.gather(9, now), slow);
        for _ in 0..9 {
            pace.conflict(now + slow);
        }
        assert_eq!(pace.gather(9, now), slow * WRITES);
    }
}
