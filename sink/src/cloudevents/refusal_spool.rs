//! Refusals that are not delivered to a receiver of CloudEvents yet.
//!
//! A refused Job is not stored in the cluster, so they are stored here: in memory, and in a file beside the refusal
//! socket, which outlives the process but not the pod. The size per receiver is limited; the oldest are evicted and
//! counted. Each sink delivers the refusals of the webhook beside it, leader or not.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use job_handler_shared::{ledger::refusal::Refusal, result::pending_events::JobPhase};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::{
    cloudevents::{
        client::{DeliveryError, EventReceiver, delivery_backoff},
        event::CloudEvent,
    },
    metrics::SinkMetrics,
};

/// Bytes of refusals that wait for one receiver.
const MAX_BYTES: usize = 1 << 20;
/// Attempts to deliver an event that the receiver rejects.
const MAX_ATTEMPTS: u32 = 5;

/// The refusals for one receiver; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct RefusalSpool(Arc<SpoolState>);

#[derive(Debug)]
struct SpoolState {
    receiver: String,
    lines: Mutex<SpoolLines>,
    added: Notify,
    metrics: SinkMetrics,
}

#[derive(Debug)]
struct SpoolLines {
    waiting: VecDeque<String>,
    bytes: usize,
    file: Option<File>,
    path: PathBuf,
    written: usize,
}

/// The spools of all receivers.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalSpools(Vec<RefusalSpool>);

impl RefusalSpools {
    pub(crate) fn new(spools: Vec<RefusalSpool>) -> Self {
        Self(spools)
    }

    /// Adds a refusal for the receivers of these names. A receiver that is not configured is reported by a condition of
    /// the policy.
    pub(crate) fn put<'a>(&self, refusal: &Refusal, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some(spool) = self.0.iter().find(|spool| spool.0.receiver == name) {
                spool.put(refusal);
            }
        }
    }
}

impl RefusalSpool {
    /// Opens the spool of a receiver. Its file is beside the refusal socket and may hold refusals of a predecessor.
    pub(crate) fn open(receiver: &str, socket: &Path, metrics: SinkMetrics) -> Self {
        let mut name = socket.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{receiver}.jsonl"));
        let path = socket.with_file_name(name);
        let mut lines = SpoolLines { waiting: VecDeque::new(), bytes: 0, file: None, path, written: 0 };
        match std::fs::read_to_string(&lines.path) {
            // The last line may have been cut off.
            Ok(text) => {
                let complete = text.lines().filter(|line| serde_json::from_str::<Refusal>(line).is_ok());
                complete.for_each(|line| lines.push(line.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %lines.path.display(), "cannot read the spooled refusals: {error}");
            }
        }
        let dropped = lines.evict();
        lines.rewrite();
        metrics.events_dropped(receiver, "spool-full", dropped);
        metrics.set_refusals_pending(receiver, lines.waiting.len());
        Self(Arc::new(SpoolState {
            receiver: receiver.to_owned(),
            lines: Mutex::new(lines),
            added: Notify::new(),
            metrics,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, SpoolLines> {
        self.0.lines.lock()
    }

    pub(crate) fn put(&self, refusal: &Refusal) {
        // A refusal that was parsed from JSON can be serialized.
        let Ok(line) = serde_json::to_string(refusal) else { return };
        let mut lines = self.lock();
        lines.append(&line);
        lines.push(line);
        let dropped = lines.evict();
        let SpoolState { receiver, metrics, .. } = &*self.0;
        metrics.events_dropped(receiver, "spool-full", dropped);
        metrics.set_refusals_pending(receiver, lines.waiting.len());
        drop(lines);
        self.0.added.notify_one();
    }

    fn first(&self) -> Option<Refusal> {
        let lines = self.lock();
        // All lines were serialized or parsed by this process.
        lines.waiting.front().and_then(|line| serde_json::from_str(line).ok())
    }

    /// Removes the first refusal, unless it was evicted meanwhile.
    fn remove(&self, refusal: &Refusal) {
        let mut lines = self.lock();
        let same = |line: &String| serde_json::from_str::<Refusal>(line).is_ok_and(|first| first == *refusal);
        if lines.waiting.front().is_some_and(same) {
            lines.pop();
        }
        if lines.waiting.is_empty() {
            lines.rewrite();
        }
        self.0.metrics.set_refusals_pending(&self.0.receiver, lines.waiting.len());
    }

    /// Delivers the refusals in order, until it is dropped.
    pub(crate) async fn run(self, receiver: Arc<impl EventReceiver>) -> Infallible {
        let SpoolState { metrics, receiver: name, .. } = &*self.0;
        let mut backoff = delivery_backoff();
        let mut rejected = 0;
        loop {
            let Some(refusal) = self.first() else {
                self.0.added.notified().await;
                continue;
            };
            match receiver.deliver(&CloudEvent::refused(&refusal)).await {
                Ok(()) => {
                    metrics.event_delivered(name, JobPhase::Refused);
                    backoff.reset();
                    rejected = 0;
                    self.remove(&refusal);
                    continue;
                }
                Err(DeliveryError::Rejected(why)) => {
                    rejected += 1;
                    if rejected >= MAX_ATTEMPTS {
                        tracing::warn!(
                            receiver = name,
                            "dropped a CloudEvent after {MAX_ATTEMPTS} attempts: {why}"
                        );
                        metrics.events_dropped(name, "rejected", 1);
                        rejected = 0;
                        self.remove(&refusal);
                        continue;
                    }
                }
                Err(error) => {
                    tracing::debug!(receiver = name, "cannot deliver CloudEvents about refusals: {error}");
                }
            }
            metrics.event_failed(name);
            backoff.wait().await;
        }
    }
}

impl SpoolLines {
    fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.waiting.push_back(line);
    }

    fn pop(&mut self) {
        if let Some(line) = self.waiting.pop_front() {
            self.bytes -= line.len() + 1;
        }
    }

    /// Evicts the oldest lines beyond the limit. Returns how many.
    fn evict(&mut self) -> u64 {
        let mut dropped = 0;
        while self.bytes > MAX_BYTES {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    fn append(&mut self, line: &str) {
        if self.written > 2 * MAX_BYTES {
            self.rewrite();
        }
        let Some(file) = &mut self.file else { return };
        self.written += line.len() + 1;
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            // They remain in memory, and would be lost at a restart.
            tracing::warn!(path = %self.path.display(), "cannot write the spool of refusals, they are in memory only: {error}");
            self.file = None;
        }
    }

    fn write_new_file(&self) -> io::Result<File> {
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&new)?;
        for line in &self.waiting {
            file.write_all(line.as_bytes())?;
            file.write_all(b"\n")?;
        }
        std::fs::rename(&new, &self.path)?;
        Ok(file)
    }

    /// Replaces the file, by renaming a new one so that a crash loses nothing.
    fn rewrite(&mut self) {
        let written = self.write_new_file();
        self.written = self.bytes;
        self.file = match written {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), "cannot write the spool of refusals, they are in memory only: {error}");
                None
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use job_handler_shared::process::telemetry::Metrics;

    use super::*;
    use crate::cloudevents::{client::tests::refusal, flaky_receiver::FlakyReceiver};

    fn spool(folder: &Path) -> RefusalSpool {
        RefusalSpool::open("ci", &folder.join("s.sock"), SinkMetrics::new(&Metrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_was_unavailable_for_an_hour_gets_each_event_once_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let back = tokio::time::Instant::now() + Duration::from_secs(3600);
        let receiver = FlakyReceiver::available_from(back);
        let task = tokio::spawn(spool.clone().run(receiver.clone()));
        for n in 0..100 {
            spool.put(&refusal(&format!("u{n}")));
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        tokio::time::sleep_until(back + Duration::from_secs(120)).await;
        task.abort();
        let ids: Vec<String> =
            receiver.received().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, (0..100).map(|n| format!("u{n}-refused")).collect::<Vec<_>>());
        assert!(receiver.attempts() < 300, "attempts are spaced while it is unavailable");
        assert_eq!(std::fs::read_to_string(folder.path().join("s.sock.ci.jsonl")).unwrap(), "");
    }

    #[test]
    fn waiting_refusals_survive_a_restart_and_a_truncated_line() {
        let folder = tempfile::tempdir().unwrap();
        let first = spool(folder.path());
        first.put(&refusal("a"));
        first.put(&refusal("b"));
        first.remove(&refusal("a"));
        drop(first);
        let file = folder.path().join("s.sock.ci.jsonl");
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("{\"decision\":\"Refu");
        std::fs::write(&file, text).unwrap();
        let again = spool(folder.path());
        // The file does not record deliveries; receivers recognize a second one by its id.
        let left: Vec<_> =
            again.lock().waiting.iter().map(|l| serde_json::from_str::<Refusal>(l).unwrap().uid).collect();
        assert_eq!(left, ["a", "b"]);
    }

    #[test]
    fn the_oldest_refusals_are_evicted_beyond_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let mut big = refusal("x");
        big.message = "m".repeat(60_000);
        for n in 0..100 {
            big.uid = n.to_string();
            spool.put(&big);
        }
        let lines = spool.lock();
        assert!(lines.bytes <= MAX_BYTES && lines.waiting.len() >= 16, "{}", lines.waiting.len());
        let last: Refusal = serde_json::from_str(lines.waiting.back().unwrap()).unwrap();
        assert_eq!(last.uid, "99");
        assert!(std::fs::metadata(&lines.path).unwrap().len() < 3 * MAX_BYTES as u64 + 70_000);
    }
}
