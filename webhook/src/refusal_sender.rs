//! Refusals on their way to the sink beside us: bounded queue -> unix socket, one JSON object per line.
//!
//! A refusal is never worth holding up an answer: where the sink is away for long, refusals are dropped and counted. The
//! author has read the reason in any case.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use job_handler_shared::ledger::refusal::{MAX_LINE, Refusal};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::metrics::WebhookMetrics;

/// Refusals that wait for the sink; at 64 KiB at most each, usually 1 KiB.
const QUEUE: usize = 1024;
/// A sink that reads slower than this is as good as away.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// What is still queued gets this long at a shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// Where refusals go in; clones share the queue.
#[derive(Clone, Debug)]
pub struct Refusals {
    queue: mpsc::Sender<Refusal>,
    metrics: WebhookMetrics,
}

/// The task that hands them over.
#[derive(Debug)]
pub struct Courier {
    queue: mpsc::Receiver<Refusal>,
    /// Taken from the queue, not handed over yet.
    unsent: VecDeque<Vec<u8>>,
    socket: PathBuf,
    metrics: WebhookMetrics,
}

/// A queue to the sink that listens on `socket`.
pub fn refusals(socket: PathBuf, metrics: WebhookMetrics) -> (Refusals, Courier) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (
        Refusals { queue: sender, metrics: metrics.clone() },
        Courier { queue, unsent: VecDeque::new(), socket, metrics },
    )
}

impl Refusals {
    /// Tells the sink, some time.
    pub fn tell(&self, refusal: Refusal) {
        if self.queue.try_send(refusal).is_err() {
            self.metrics.refusals_dropped.inc();
        }
    }
}

impl Courier {
    /// Hands over until `shutdown`, and then what is still there, for a second.
    pub async fn run(mut self, shutdown: CancellationToken) {
        if shutdown.run_until_cancelled(self.deliver(false)).await.is_none()
            && tokio::time::timeout(DRAIN, self.deliver(true)).await.is_err()
        {
            tracing::warn!("the sink did not take the last refusals");
        }
        let left = self.queue.len() + self.unsent.len();
        self.metrics.refusals_dropped.inc_by(left as u64);
    }

    /// Ends when the queue is closed or, with `until_empty`, empty.
    async fn deliver(&mut self, until_empty: bool) {
        let mut backoff = backoff();
        let mut told = false;
        loop {
            if self.unsent.is_empty() && !(until_empty && self.queue.is_empty()) {
                let Some(refusal) = self.queue.recv().await else { return };
                self.keep(&refusal);
            }
            if self.unsent.is_empty() {
                if until_empty {
                    return;
                }
                continue;
            }
            match self.connected(until_empty).await {
                Ok(()) => return,
                Err(error) => {
                    if !told {
                        tracing::warn!(socket = %self.socket.display(), "cannot hand refusals to the sink, trying again: {error}");
                        told = true;
                    }
                    tokio::time::sleep(backoff.next().unwrap_or(WRITE_TIMEOUT)).await;
                    if error.kind() == std::io::ErrorKind::BrokenPipe {
                        (backoff, told) = (self::backoff(), false);
                    }
                }
            }
        }
    }

    /// Writes over one connection until it breaks. A line that was being written when it broke is written again whole:
    /// the sink drops what has no line end.
    async fn connected(&mut self, until_empty: bool) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        loop {
            while let Some(line) = self.unsent.front() {
                tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(line)).await??;
                self.metrics.refusals_sent.inc();
                self.unsent.pop_front();
            }
            if until_empty && self.queue.is_empty() {
                return stream.shutdown().await;
            }
            let Some(refusal) = self.queue.recv().await else { return stream.shutdown().await };
            self.keep(&refusal);
        }
    }

    fn keep(&mut self, refusal: &Refusal) {
        self.unsent.extend(self.line(refusal));
    }

    fn line(&self, refusal: &Refusal) -> Option<Vec<u8>> {
        match serde_json::to_vec(refusal) {
            Ok(mut line) if line.len() < MAX_LINE => {
                line.push(b'\n');
                Some(line)
            }
            Ok(line) => {
                tracing::warn!(bytes = line.len(), "a refusal is too long for the sink");
                self.metrics.refusals_dropped.inc();
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a refusal cannot be written");
                self.metrics.refusals_dropped.inc();
                None
            }
        }
    }
}

/// 50 ms to 5 s, with jitter, without end.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}
