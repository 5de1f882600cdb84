//! How long a ledger's actor gathers requests before it writes: every write of a ledger may hold any number of grants, so
//! under load few large ones cost everybody less than many small ones, of which each makes another replica's come too late.
//!
//! Who comes alone is never made to wait.

use std::time::{Duration, Instant};

/// Between the beginnings of two writes, where requests come faster than they are served.
const LEAST: Duration = Duration::from_millis(12);
/// The same where other replicas' writes keep coming first.
const MOST: Duration = Duration::from_millis(60);

/// The pace of one ledger in this process.
#[derive(Clone, Debug)]
pub struct Pace {
    apart: Duration,
    last: Option<Instant>,
    crowded: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { apart: LEAST, last: None, crowded: false }
    }
}

impl Pace {
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
    pub fn done(&mut self) {
        self.apart = (self.apart * 7 / 8).max(LEAST);
    }

    /// Another replica's came first. How long to gather before the next try, given a number from 0 to 255 by chance.
    pub fn conflict(&mut self, chance: u8) -> Duration {
        self.apart = (self.apart * 2).min(MOST);
        // Alone, as after a single try for a single request, one is back at once; where many meet they spread out.
        let most = if self.crowded { self.apart } else { LEAST };
        Duration::from_millis(1) + most * u32::from(chance) / 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_does_not_wait_and_conflicts_make_writes_rarer() {
        let mut pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.gather(50, now), Duration::ZERO, "nothing was written a moment ago");
        pace.begins(1, now);
        assert_eq!(pace.gather(1, now), Duration::ZERO);
        assert_eq!(pace.gather(2, now), LEAST);
        pace.begins(9, now);
        assert_eq!(pace.gather(1, now + LEAST / 2), LEAST / 2, "others are about to come");
        assert_eq!(pace.gather(1, now + LEAST), Duration::ZERO);
        for _ in 0..9 {
            assert!(pace.conflict(255) <= MOST + Duration::from_millis(1));
        }
        assert_eq!(pace.gather(1, now), MOST);
        for _ in 0..99 {
            pace.done();
        }
        assert_eq!(pace.gather(1, now), LEAST);
    }
}
