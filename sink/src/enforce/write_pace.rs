//! When a configuration may be written: every apiserver compiles it as a whole, and etcd keeps each version for a while.

use std::{collections::HashMap, time::Duration};

use job_handler_shared::process::jitter::Backoff;
use tokio::time::Instant;

/// This many writes of a configuration are made at once, and one more after each [`PERIOD`]: a tenant whose policies change
/// all the time has no more effect than that.
const BURST: u32 = 10;
/// See [`BURST`].
pub(crate) const PERIOD: Duration = Duration::from_secs(2);
/// First and longest pause after the apiserver has rejected a configuration.
const RETRY_REJECTED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The earlier writes, by configuration.
#[derive(Debug, Default)]
pub(crate) struct WritePace {
    /// The time from which on all [`BURST`] writes are free again.
    free_at: HashMap<usize, Instant>,
    rejected: HashMap<usize, RejectedWrite>,
}

/// The last write of a configuration was rejected.
#[derive(Debug)]
struct RejectedWrite {
    why: String,
    retry_at: Instant,
    backoff: Backoff,
}

impl WritePace {
    /// Why the apiserver rejected the configuration, if it is too early to try again.
    pub(crate) fn rejection(&self, index: usize) -> Option<&str> {
        let rejected = self.rejected.get(&index).filter(|rejected| rejected.retry_at > Instant::now())?;
        Some(&rejected.why)
    }

    /// Whether the configuration was written too often.
    pub(crate) fn is_exhausted(&self, index: usize) -> bool {
        self.free_at.get(&index).is_some_and(|free_at| *free_at > Instant::now() + PERIOD * (BURST - 1))
    }

    pub(crate) fn written(&mut self, index: usize) {
        self.rejected.remove(&index);
        let now = Instant::now();
        let free_at = self.free_at.entry(index).or_insert(now);
        *free_at = ((*free_at).max(now) + PERIOD).min(now + PERIOD * BURST);
    }

    pub(crate) fn rejected(&mut self, index: usize, why: String) {
        let (first, longest) = RETRY_REJECTED;
        let backoff = self.rejected.remove(&index).map(|rejected| rejected.backoff);
        let mut backoff = backoff.unwrap_or_else(|| Backoff::new(first, longest));
        let retry_at = Instant::now() + backoff.next_pause();
        self.rejected.insert(index, RejectedWrite { why, retry_at, backoff });
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_writes_are_free_and_further_ones_wait_at_most_one_period() {
        let mut pace = WritePace::default();
        for _ in 0..BURST {
            assert!(!pace.is_exhausted(0));
            pace.written(0);
        }
        assert!(pace.is_exhausted(0) && !pace.is_exhausted(1));
        // Those that were made nevertheless do not count.
        for _ in 0..100 {
            pace.written(0);
        }
        advance(PERIOD).await;
        assert!(!pace.is_exhausted(0));
        pace.written(0);
        assert!(pace.is_exhausted(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejected_configuration_waits_until_it_is_due() {
        let mut pace = WritePace::default();
        pace.rejected(3, "no".to_owned());
        assert_eq!((pace.rejection(3), pace.rejection(4)), (Some("no"), None));
        advance(RETRY_REJECTED.0 * 3).await;
        assert_eq!(pace.rejection(3), None);
        pace.written(3);
        assert!(pace.rejected.is_empty());
    }
}
