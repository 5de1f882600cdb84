//! Decides when a failure that repeats is worth a line in the log.

use std::time::Duration;

use tokio::time::Instant;

/// A failure that stays the same is logged again this often.
const REPEAT: Duration = Duration::from_secs(60);

/// The last failure that was logged.
#[derive(Debug, Default)]
pub struct FailureLog(Option<(String, Instant)>);

impl FailureLog {
    /// Whether to log this failure now: it is new, it has changed, or it was logged a minute ago.
    pub fn is_due(&mut self, failure: &str) -> bool {
        if self.0.as_ref().is_some_and(|(last, at)| last == failure && at.elapsed() < REPEAT) {
            return false;
        }
        self.0 = Some((failure.to_owned(), Instant::now()));
        true
    }

    /// Records a success. Returns whether it ends a failure.
    pub fn succeeded(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_logged_when_it_is_new_changes_or_lasts() {
        let mut log = FailureLog::default();
        assert!(!log.succeeded() && log.is_due("a") && !log.is_due("a") && log.is_due("b"));
        tokio::time::advance(REPEAT).await;
        assert!(log.is_due("b") && log.succeeded() && !log.succeeded() && log.is_due("b"));
    }
}
