//! Pauses calls to a store that fails, so that each Job does not wait for it again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures in a row, after which calls pause …
pub(super) const FAILURES: u32 = 2;
/// … for this long.
pub(super) const PAUSE: Duration = Duration::from_secs(15);

#[derive(Default)]
pub(super) struct CircuitBreaker(Mutex<Failures>);

#[derive(Default)]
struct Failures {
    in_a_row: u32,
    last: Option<Instant>,
    reason: String,
}

impl Failures {
    fn check(&self) -> Result<(), String> {
        let paused = self.last.is_some_and(|last| last.elapsed() < PAUSE);
        if self.in_a_row >= FAILURES && paused {
            return Err(format!("calls to the object store are paused after: {}", self.reason));
        }
        Ok(())
    }
}

impl CircuitBreaker {
    /// Fails while calls are paused.
    pub(super) fn check(&self) -> Result<(), String> {
        self.0.lock().check()
    }

    /// Like [`Self::check`], for a caller that calls the store next. After a pause it admits a single call, which tests
    /// the store while others still wait.
    pub(super) fn try_call(&self) -> Result<(), String> {
        let mut failures = self.0.lock();
        failures.check()?;
        if failures.in_a_row >= FAILURES {
            failures.last = Some(Instant::now());
        }
        Ok(())
    }

    pub(super) fn record<T>(&self, outcome: &Result<T, String>) {
        let mut failures = self.0.lock();
        match outcome {
            Ok(_) => *failures = Failures::default(),
            Err(reason) => {
                failures.in_a_row = failures.in_a_row.saturating_add(1);
                (failures.last, failures.reason) = (Some(Instant::now()), reason.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_one_call_tests_the_store() {
        let breaker = CircuitBreaker::default();
        let failed = Err::<(), _>("refused".to_owned());
        for _ in 0..FAILURES {
            assert_eq!(breaker.try_call(), Ok(()));
            breaker.record(&failed);
        }
        assert!(breaker.try_call().unwrap_err().ends_with("paused after: refused"));
        tokio::time::advance(PAUSE).await;
        assert_eq!(breaker.try_call(), Ok(()));
        assert!(breaker.try_call().is_err(), "others wait for the outcome");
        breaker.record(&Ok(()));
        assert!(breaker.try_call().is_ok() && breaker.check().is_ok());
    }
}
