//! When the secret in the path of reviews is replaced. Pure.
//!
//! Every replica counts the time since it first saw the current secret, by its own clock. The first one whose time is up
//! replaces the secret, and the others start anew.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::review_path::{LeakSign, PathNumbers};

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
    /// What each kind of sign calls for.
    early: BTreeMap<LeakSign, EarlyReplacements>,
    /// Not before this time.
    not_before: Option<Instant>,
}

/// Replacements that are due early, because of one kind of sign. Each kind has its own: a tenant may cause one kind for
/// nothing, which must not delay what another kind calls for.
#[derive(Clone, Copy, Debug)]
struct EarlyReplacements {
    left: u8,
    /// Whether another sign came after the first of them, about a secret that they leave in use.
    again: bool,
    /// Age at which a secret is replaced early. It grows up to the interval while signs continue, so that nobody can make us
    /// write the configurations often by causing them.
    age: Duration,
    last_sign: Option<Instant>,
}

impl PathRotation {
    /// Replaces the secret every `interval`, but not before it is [`MIN_AGE`] old; an interval of zero never. The first
    /// ones are replaced early, because calls that failed while the process did not run showed their URL.
    pub(crate) fn new(interval: Duration) -> Self {
        let interval = if interval.is_zero() { interval } else { interval.max(MIN_AGE) };
        let at_start = EarlyReplacements { left: UNTIL_UNUSED, ..EarlyReplacements::default() };
        Self {
            interval,
            published: None,
            early: BTreeMap::from([(LeakSign::NoAnswer, at_start)]),
            not_before: None,
        }
    }

    /// When the secret should be replaced; none before one is published, or if it never is.
    pub(crate) fn wanted_at(&self) -> Option<Instant> {
        let (_, since) = self.published.filter(|_| !self.interval.is_zero())?;
        let early = self.early.values().filter(|early| early.left > 0).map(|early| early.age).min();
        Some(since + early.unwrap_or(self.interval))
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
            Some(_) => self.early.values_mut().for_each(|early| early.replaced(self.interval)),
            None => {}
        }
        self.published = Some((numbers, now));
    }

    /// Waits before the next try to replace the secret.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
    }

    /// Records a sign that somebody else knows the secret. Returns whether it calls for more than was due anyway.
    pub(crate) fn suspect(&mut self, sign: LeakSign, now: Instant) -> bool {
        let early = self.early.entry(sign).or_default();
        let before = early.last_sign.replace(now);
        match early.left {
            // Those to come take the current secret out of use.
            UNTIL_UNUSED => false,
            0 => {
                if before.is_none_or(|before| now.saturating_duration_since(before) > self.interval) {
                    early.age = MIN_AGE;
                }
                early.left = UNTIL_UNUSED;
                true
            }
            _ => !std::mem::replace(&mut early.again, true),
        }
    }
}

impl Default for EarlyReplacements {
    fn default() -> Self {
        Self { left: 0, again: false, age: MIN_AGE, last_sign: None }
    }
}

impl EarlyReplacements {
    fn replaced(&mut self, interval: Duration) {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 && std::mem::take(&mut self.again) {
            self.left = UNTIL_UNUSED;
            self.age = (self.age * 2).min(interval);
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
        assert!(rotation.suspect(LeakSign::NewCaller, begin + Duration::from_secs(1000)));
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
            rotation.suspect(LeakSign::NoAnswer, begin + Duration::from_secs(second));
            times.extend(replaced(&mut rotation, begin, second..second + 1));
        }
        let ages: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(ages[..8], [20, 40, 40, 80, 80, 160, 160, 300]);
        assert!(ages[8..].iter().all(|age| *age == 300), "{ages:?}");
    }

    /// For how long each secret stays in use that leaks at these seconds, while signs that a tenant causes for nothing come
    /// every second.
    fn lives(leaks: &[u64], shown_by: Option<LeakSign>) -> Vec<u64> {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        rotation.record(numbers(1), false, begin);
        let mut times = Vec::new();
        for second in 1..20_000 {
            let now = begin + Duration::from_secs(second);
            rotation.suspect(LeakSign::OverdueAttempts, now);
            rotation.suspect(LeakSign::LostConnection, now);
            if let Some(sign) = shown_by.filter(|_| leaks.contains(&second)) {
                rotation.suspect(sign, now);
            }
            times.extend(replaced(&mut rotation, begin, second..second + 1));
        }
        let end = |leak: &u64| times.iter().filter(|time| *time >= leak).nth(1).unwrap() - leak;
        leaks.iter().map(end).collect()
    }

    #[test]
    fn signs_that_a_tenant_causes_for_nothing_do_not_lengthen_the_life_of_a_leaked_secret() {
        let leaks = [5000, 6234, 12_000, 15_001];
        let noticed_by_nothing = lives(&leaks, None);
        assert!(noticed_by_nothing.iter().all(|life| *life <= 600), "{noticed_by_nothing:?}");
        for sign in [LeakSign::NoAnswer, LeakSign::NewCaller] {
            let lives = lives(&leaks, Some(sign));
            assert!(lives.iter().all(|life| *life <= 40), "{sign:?}: {lives:?}");
        }
    }

    #[test]
    fn several_signs_of_one_leak_count_once() {
        let begin = Instant::now();
        let mut rotation = PathRotation::new(INTERVAL);
        rotation.record(numbers(1), false, begin);
        assert_eq!(replaced(&mut rotation, begin, 1..1000), [20, 40, 340, 640, 940]);
        let new = [941, 942, 943]
            .map(|second| rotation.suspect(LeakSign::NoAnswer, begin + Duration::from_secs(second)));
        assert_eq!(new, [true, false, false]);
        assert_eq!(replaced(&mut rotation, begin, 1000..2000), [1000, 1020, 1320, 1620, 1920]);
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
        rotation.suspect(LeakSign::NoAnswer, begin);
        assert_eq!(rotation.due_at(), None);
    }
}
