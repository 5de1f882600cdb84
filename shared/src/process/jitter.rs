//! Random pauses, so that replicas and clients that failed together do not retry together.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Between half of `pause` and all of it: retries keep their rough pace ("equal jitter").
pub fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Between nothing and all of `pause`: replicas that compete for one object spread out most ("full jitter").
pub fn full_jitter(pause: Duration) -> Duration {
    pause.mul_f64(fastrand::f64())
}

/// The pause after `failures` earlier ones: `first`, doubled with each of them up to `longest`. Without jitter.
pub fn exponential(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(31)).min(longest)
}

/// The pauses between retries.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// Pauses that double from `first` to `longest`, with jitter.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let pauses = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        Self { first, longest, pauses }
    }

    /// Starts again with the first pause, after a success.
    pub fn reset(&mut self) {
        *self = Self::new(self.first, self.longest);
    }

    /// Waits for the next pause.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_in_their_range() {
        let pause = Duration::from_secs(1);
        let equal: Vec<Duration> = (0..100).map(|_| jitter(pause)).collect();
        assert!(equal.iter().all(|one| (pause / 2..=pause).contains(one)), "{equal:?}");
        assert!(equal.iter().any(|one| *one != equal[0]), "{equal:?}");
        let full: Vec<Duration> = (0..100).map(|_| full_jitter(pause)).collect();
        assert!(full.iter().all(|one| *one <= pause), "{full:?}");
        assert!(full.iter().any(|one| *one < pause / 2), "{full:?}");
    }

    #[test]
    fn exponential_pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(1));
        let pauses = [0, 1, 2, 3, u32::MAX].map(|failures| exponential(first, longest, failures).as_millis());
        assert_eq!(pauses, [200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_backoff_grows_and_starts_again_after_a_reset() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] < first * 3 && pauses[99] >= longest, "{pauses:?}");
        backoff.reset();
        assert!(backoff.next_pause() < first * 3);
    }
}
