//! Closed-loop load: each connection sends its next request after the answer to the previous one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hyper::body::Bytes;
use tokio::task::JoinSet;

use crate::harness::error::{Error, Result};
use crate::net::https_client::{Connection, HttpAnswer, HttpsClient};

/// The figures of one round.
#[derive(Clone, Debug)]
pub struct LoadRound {
    /// From the first request until the last answer.
    pub elapsed: Duration,
    /// Time from request to answer.
    pub latencies: Latencies,
}

/// Times from request to answer, to three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// No times yet.
    pub fn new() -> Self {
        #[expect(clippy::expect_used, reason = "three digits are within the 0..=5 that the crate takes")]
        Self(Histogram::new(3).expect("a histogram of three significant digits"))
    }

    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        // Fails only beyond 64 bits of nanoseconds.
        let _ = self.0.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all times of another.
    pub fn merge(&mut self, other: &Self) {
        // Fails only as above.
        let _ = self.0.add(&other.0);
    }

    /// The number of times.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile (0 to 1), in microseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// Posts `body` to `path` on `connections` new keep-alive connections for `time`, and once on each at least. Handshakes are
/// not counted.
///
/// # Errors
/// If an answer differs from `expected`, or a connection breaks.
pub async fn round(
    https: &HttpsClient,
    path: &'static str,
    body: &Bytes,
    expected: &Arc<HttpAnswer>,
    connections: usize,
    time: Duration,
) -> Result<LoadRound> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(https.connect().await?);
    }
    let begin = Instant::now();
    let until = begin + time;
    let mut tasks = JoinSet::new();
    for connection in open {
        tasks.spawn(drive(connection, path, body.clone(), expected.clone(), until));
    }
    let mut latencies = Latencies::new();
    while let Some(done) = tasks.join_next().await {
        let task_latencies =
            done.map_err(|error| Error::Invalid(format!("a load task panicked: {error}")))??;
        latencies.merge(&task_latencies);
    }
    Ok(LoadRound { elapsed: begin.elapsed(), latencies })
}

async fn drive(
    mut connection: Connection,
    path: &'static str,
    body: Bytes,
    expected: Arc<HttpAnswer>,
    until: Instant,
) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    let mut now = Instant::now();
    // A busy machine may start this task when the time is over.
    while latencies.count() == 0 || now < until {
        let answer = connection.post(path, body.clone()).await?;
        let after = Instant::now();
        latencies.add(after - now);
        if answer != *expected {
            let HttpAnswer { status, body } = answer;
            let wanted = &expected.body;
            return Err(Error::Invalid(format!("expected the answer 200 {wanted}, found {status} {body}")));
        }
        now = after;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut latencies = Latencies::new();
        for micros in 1..=100 {
            latencies.add(Duration::from_micros(micros));
        }
        let mut other = Latencies::new();
        other.add(Duration::from_secs(1));
        latencies.merge(&other);
        assert_eq!(latencies.count(), 101);
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.002;
        assert!(near(latencies.quantile(0.5), 51.0), "{}", latencies.quantile(0.5));
        assert!(near(latencies.quantile(1.0), 1e6), "{}", latencies.quantile(1.0));
    }
}
