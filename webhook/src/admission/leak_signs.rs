//! Signs that the paths of reviews have leaked, other than those that the server sees.

use std::time::Duration;

use job_handler_certs::review_path::{LeakSign, ReviewPaths};
use tokio::time::Instant;

use crate::ledger::limiter::LedgerLimiter;

/// How often to look for signs.
const LEAK_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// A process that stands still for less than this answers in time.
const LONG_PAUSE: Duration = Duration::from_secs(3);
/// Fewer attempts without a Job are usual: a quota that denies Jobs after our admission causes them, too.
const MANY_OVERDUE_ATTEMPTS: usize = 5;

/// Reports signs of a leak: if the process stood still, calls failed meanwhile and showed their URL; and attempts that store
/// no Job may be forged.
pub async fn report_leaks(limiter: LedgerLimiter, paths: ReviewPaths) {
    loop {
        let begun = Instant::now();
        tokio::time::sleep(LEAK_CHECK_INTERVAL).await;
        if begun.elapsed() > LEAK_CHECK_INTERVAL + LONG_PAUSE {
            paths.suspect_leak(LeakSign::NoAnswer);
        }
        if limiter.overdue_attempts() >= MANY_OVERDUE_ATTEMPTS {
            paths.suspect_leak(LeakSign::OverdueAttempts);
        }
    }
}
