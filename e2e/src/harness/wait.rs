//! Waiting on a condition, never on a sleep.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::error::{Error, Result};

/// Looks again and again until the look returns `Ok`, or the deadline passes. `Err` of a look says what
/// was seen instead; the last one is told when the wait was in vain.
///
/// # Errors
/// [`Error::Timeout`], which names what was waited for and what was last seen.
pub async fn wait_for<T, E, F>(within: Duration, what: &str, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let until = Instant::now() + within;
    let mut pause = Duration::from_millis(20);
    let mut last = "nothing yet (the first look did not return)".to_owned();
    loop {
        match tokio::time::timeout_at(until, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = seen.to_string(),
            Err(_) => {}
        }
        if Instant::now() + pause >= until {
            return Err(Error::Timeout { what: what.to_owned(), waited: within, last });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}
