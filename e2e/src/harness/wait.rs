//! Waits for conditions instead of sleeping.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::error::{Error, Result};

/// Polls until `poll` returns `Ok` or the deadline passes. The timeout error contains the last `Err`.
///
/// # Errors
/// [`Error::Timeout`], with `what` and the last error.
pub async fn wait_for<T, E, F>(within: Duration, what: &str, mut poll: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let until = Instant::now() + within;
    let mut pause = Duration::from_millis(20);
    let mut last = "nothing (the first attempt did not return)".to_owned();
    loop {
        match tokio::time::timeout_at(until, poll()).await {
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
