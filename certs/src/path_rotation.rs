//! When the secret in the path of reviews is replaced. Pure.
//!
//! Every replica counts the time since it first saw the current secret, by its own clock. The first one whose time is up
//! replaces the secret, and the others start anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::review_path::PathNumbers;

/// Least time between two secrets, so that the sink and the apiservers have taken one up before the next comes.
pub(crate) const MIN_AGE: Duration = Duration::from_secs(20);
/// A secret that cannot be replaced yet is tried again after this time.
const RETRY: Duration = Duration::from_secs(15);
/// So many replacements take a secret out of use: the newest two are accepted.
const UNTIL_UNUSED: u8 = 2;

/// Decides when the secret is replaced.
#[derive(Debug)]
pub(crate) struct PathRotation {
    /// Zero: never.
    interval: Duration,
    /// The published secret, and since when this replica knows it.
    published: Option<(PathNumbers, Instant)>,
    /// Replacements that are due early, because the secret may have leaked.
    early: u8,
    /// Whether there was another suspicion since the first of these.
    suspected_again: bool,
    /// Age at which a secret is replaced early. It grows up to the interval while suspicions continue, so that nobody can
    /// make us write the configurations often by causing them.
    early_age: Duration,
    /// Not before this time.
    not_before: Option<Instant>,
}

impl PathRotation {
    /// Replaces the secret every `interval`, but not before it is [`MIN_AGE`] old; an interval of zero never. The first
    /// ones are replaced early, because calls that failed while the process did not run showed their URL.
    pub(crate) fn new(interval: Duration) -> Self {
        let interval = if interval.is_zero() { interval } else { interval.max(MIN_AGE) };
        Self {
            interval,
            published: None,
            early: UNTIL_UNUSED,
            suspected_again: false,
            early_age: MIN_AGE,
            not_before: None,
        }
    }

    /// When the secret should be replaced; none before one is published, or if it never is.
    pub(crate) fn wanted_at(&self) -> Option<Instant> {
        let (_, since) = self.published.filter(|_| !self.interval.is_zero())?;
        Some(since + if self.early > 0 { self.early_age } else { self.interval })
    }

    /// When to try that, the next time.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let wanted = self.wanted_at()?;
        Some(self.not_before.map_or(wanted, |not_before| not_before.max(wanted)))
    }

    /// Whether the secret has to be replaced at `now`.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due_at().is_some_and(|at| now >= at)
    }

    /// Records which secret is published at `now`, and whether replacing it has to wait for the sink.
    pub(crate) fn record(&mut self, numbers: PathNumbers, postponed: bool, now: Instant) {
        self.not_before = None;
        if postponed {
            self.postpone(now);
        }
        match self.published {
            Some((known, _)) if known == numbers => return,
            Some(_) if self.early > 0 => self.replaced_early(),
            // There was no suspicion for a whole interval.
            Some(_) => self.early_age = MIN_AGE,
            None => {}
        }
        self.published = Some((numbers, now));
    }

    /// Waits before the next try to replace the secret.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
    }

    /// Records that somebody else may know the secret.
    pub(crate) fn suspect(&mut self) {
        if self.early > 0 {
            self.suspected_again = true;
        } else {
            self.early = UNTIL_UNUSED;
        }
    }

    fn replaced_early(&mut self) {
        self.early -= 1;
        if self.early == 0 && std::mem::take(&mut self.suspected_again) {
            self.early = UNTIL_UNUSED;
            self.early_age = (self.early_age * 2).min(self.interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(300);

    fn numbers(number: u64) -> PathNumbers {
        PathNumbers { number, oldest: number - 1 }
    }

    /// Replaces the secret whenever it is due. Returns the seconds at which that happened.
    fn replaced(rotation: &mut PathRotation, begin: Instant, seconds: std::ops::Range<u64>) -> Vec<u64> {
        let mut times = Vec::new();
        for second in seconds {
            let now = begin + Duration::from_secs(second);
            if rotation.is_due(now) {
                rotation.record(numbers(second + 2), false, now);
                times.push(second);
            }
        }
        times
    }

    #[test]
    fn secrets_are_replaced_early_after_the_start_and_after_a_suspicion() {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        assert!(!rotation.is_due(begin + INTERVAL * 9), "nothing is published");
        rotation.record(numbers(1), false, begin);
        assert_eq!(replaced(&mut rotation, begin, 1..1000), [20, 40, 340, 640, 940]);
        rotation.suspect();
        // Twice, so that the suspected one is not accepted any more.
        assert_eq!(replaced(&mut rotation, begin, 1000..1400), [1000, 1020, 1320]);
    }

    #[test]
    fn while_suspicions_continue_secrets_are_replaced_less_and_less_often() {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        rotation.record(numbers(1), false, begin);
        let mut times = Vec::new();
        for second in 1..6000 {
            rotation.suspect();
            times.extend(replaced(&mut rotation, begin, second..second + 1));
        }
        let ages: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(ages[..8], [20, 40, 40, 80, 80, 160, 160, 300]);
        assert!(ages[8..].iter().all(|age| *age == 300), "{ages:?}");
    }

    #[test]
    fn a_secret_that_another_replica_replaced_counts_as_replaced() {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        rotation.record(numbers(1), false, begin);
        for n in 2..4 {
            rotation.record(numbers(n), false, begin + Duration::from_secs(n));
        }
        assert_eq!(rotation.due_at(), Some(begin + Duration::from_secs(3) + INTERVAL));
    }

    #[test]
    fn a_postponed_replacement_is_tried_again_and_zero_replaces_nothing() {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        rotation.record(numbers(1), false, begin);
        let due = begin + MIN_AGE;
        rotation.record(numbers(1), true, due);
        assert_eq!((rotation.wanted_at(), rotation.due_at()), (Some(due), Some(due + RETRY)));
        let mut rotation = PathRotation::new(Duration::ZERO);
        rotation.record(numbers(1), false, begin);
        rotation.suspect();
        assert_eq!(rotation.due_at(), None);
    }
}
