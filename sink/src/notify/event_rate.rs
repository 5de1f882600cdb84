//! Limits new Events per namespace with a token bucket. Pure, with the clock passed in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// New Events at once, per namespace.
const BURST: f64 = 50.0;
/// New Events per second after a burst, per namespace.
const RATE: f64 = 1.0;
/// A bucket that was not used for this long is full again and can be dropped.
const IDLE: Duration = Duration::from_secs(360);
/// Number of buckets at which idle ones are dropped.
const MAX_BUCKETS: usize = 10_000;

/// The token buckets of all namespaces.
#[derive(Debug, Default)]
pub(crate) struct EventRateLimiter(HashMap<String, (f64, Instant)>);

impl EventRateLimiter {
    /// Takes a token. Returns false if there is none.
    pub(crate) fn allow(&mut self, namespace: &str, now: Instant) -> bool {
        if self.0.len() >= MAX_BUCKETS {
            self.drop_idle(now);
        }
        let (tokens, refilled) = self.0.entry(namespace.to_owned()).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_duration_since(*refilled).as_secs_f64() * RATE).min(BURST);
        *refilled = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    pub(crate) fn drop_idle(&mut self, now: Instant) {
        self.0.retain(|_, (_, refilled)| now.saturating_duration_since(*refilled) < IDLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_then_one_event_per_second() {
        let (mut limiter, start) = (EventRateLimiter::default(), Instant::now());
        assert_eq!((0..100).filter(|_| limiter.allow("a", start)).count(), 50);
        assert!(limiter.allow("b", start), "namespaces have buckets of their own");
        let later = start + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| limiter.allow("a", later)).count(), 3);
        limiter.drop_idle(later + IDLE);
        assert!(limiter.0.is_empty());
    }
}
