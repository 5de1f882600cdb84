//! Sends refusals to the sink in the same pod: bounded queue -> unix socket, one JSON object per line.
//!
//! Reporting a refusal never delays a response. If the sink is away for long, refusals are dropped and counted; the client
//! has got the reason in any case.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use job_handler_shared::ledger::refusal::{MAX_LINE_BYTES, Refusal};
use job_handler_shared::process::jitter::Backoff;
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::metrics::WebhookMetrics;

/// Most refusals that wait for the sink. Each takes 64 KiB at most, usually 1 KiB.
const QUEUE_SIZE: usize = 1024;
/// A sink that reads slower than this counts as away.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time to send the queued refusals at a shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of refusals for the sink. Clones share it.
#[derive(Clone, Debug)]
pub struct RefusalQueue {
    queue: mpsc::Sender<Refusal>,
    metrics: WebhookMetrics,
}

/// The task that sends queued refusals to the sink.
#[derive(Debug)]
pub struct RefusalSender {
    queue: mpsc::Receiver<Refusal>,
    /// Lines that were taken from the queue and are not sent yet.
    unsent: VecDeque<Vec<u8>>,
    socket: PathBuf,
    metrics: WebhookMetrics,
}

/// A queue, and the task that sends its refusals to the sink that listens on `socket`.
pub fn channel(socket: PathBuf, metrics: WebhookMetrics) -> (RefusalQueue, RefusalSender) {
    let (sender, queue) = mpsc::channel(QUEUE_SIZE);
    (
        RefusalQueue { queue: sender, metrics: metrics.clone() },
        RefusalSender { queue, unsent: VecDeque::new(), socket, metrics },
    )
}

impl RefusalQueue {
    /// Queues a refusal, or drops and counts it if the queue is full.
    pub fn push(&self, refusal: Refusal) {
        if self.queue.try_send(refusal).is_err() {
            self.metrics.refusals_dropped.inc();
        }
    }
}

impl RefusalSender {
    /// Sends refusals until `shutdown`, then drains the queue for up to a second.
    pub async fn run(mut self, shutdown: CancellationToken) {
        if shutdown.run_until_cancelled(self.send_all(false)).await.is_none()
            && tokio::time::timeout(DRAIN_TIMEOUT, self.send_all(true)).await.is_err()
        {
            tracing::warn!("the sink did not read the last refusals in time");
        }
        let left = self.queue.len() + self.unsent.len();
        self.metrics.refusals_dropped.inc_by(left as u64);
    }

    /// Returns when the queue is closed or, with `until_empty`, empty.
    async fn send_all(&mut self, until_empty: bool) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut logged = false;
        loop {
            if self.unsent.is_empty() && !(until_empty && self.queue.is_empty()) {
                let Some(refusal) = self.queue.recv().await else { return };
                self.add_line(&refusal);
            }
            if self.unsent.is_empty() {
                if until_empty {
                    return;
                }
                continue;
            }
            match self.send_over_connection(until_empty).await {
                Ok(()) => return,
                Err(error) => {
                    if !logged {
                        tracing::warn!(socket = %self.socket.display(), "cannot send refusals to the sink, retrying: {error}");
                        logged = true;
                    }
                    backoff.wait().await;
                    if error.kind() == std::io::ErrorKind::BrokenPipe {
                        backoff.reset();
                        logged = false;
                    }
                }
            }
        }
    }

    /// Writes over one connection until it breaks. An interrupted line is sent again in full, because the sink drops lines
    /// without a line end.
    async fn send_over_connection(&mut self, until_empty: bool) -> std::io::Result<()> {
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
            self.add_line(&refusal);
        }
    }

    fn add_line(&mut self, refusal: &Refusal) {
        self.unsent.extend(self.encode(refusal));
    }

    fn encode(&self, refusal: &Refusal) -> Option<Vec<u8>> {
        match serde_json::to_vec(refusal) {
            Ok(mut line) if line.len() < MAX_LINE_BYTES => {
                line.push(b'\n');
                Some(line)
            }
            Ok(line) => {
                tracing::warn!(bytes = line.len(), "dropped a refusal that is longer than the sink accepts");
                self.metrics.refusals_dropped.inc();
                None
            }
            Err(error) => {
                tracing::warn!(%error, "dropped a refusal that cannot be encoded as JSON");
                self.metrics.refusals_dropped.inc();
                None
            }
        }
    }
}
