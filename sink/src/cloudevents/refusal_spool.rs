//! Refusals that receivers of CloudEvents have yet to be told of.
//!
//! A refused Job exists nowhere, so they are kept here: so many per receiver, the oldest are thrown out (and counted)
//! where there are more, in memory and in a file beside the refusal socket, which outlives the process but not the pod.
//! Each sink tells of the refusals of the webhook beside it, leader or not.

use std::{
    collections::VecDeque,
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
        client::{Fault, Patience, Post},
        event::Told,
    },
    metrics::SinkMetrics,
};

/// Bytes of refusals that wait for one receiver.
pub const MAX_BYTES: usize = 1 << 20;
/// So often an event is offered to a receiver that rejects it.
const TRIES: u32 = 5;

/// The refusals for one receiver; clones are the same one.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    receiver: String,
    lines: Mutex<Lines>,
    more: Notify,
    metrics: SinkMetrics,
}

#[derive(Debug)]
struct Lines {
    waiting: VecDeque<String>,
    bytes: usize,
    file: Option<File>,
    path: PathBuf,
    written: usize,
}

/// All spools of this sink.
#[derive(Clone, Debug, Default)]
pub struct Spools(Vec<Spool>);

impl Spools {
    /// Those of these receivers.
    pub fn new(spools: Vec<Spool>) -> Self {
        Self(spools)
    }

    /// Takes in a refusal for the receivers of these names; others are not configured, as the policy's condition says.
    pub fn put<'a>(&self, refusal: &Refusal, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if let Some(spool) = self.0.iter().find(|spool| spool.0.receiver == name) {
                spool.put(refusal);
            }
        }
    }
}

impl Spool {
    /// Opens the spool of a receiver, whose file is beside the refusal socket; takes up what a predecessor left in it.
    pub fn open(receiver: &str, socket: &Path, metrics: SinkMetrics) -> Self {
        let mut name = socket.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{receiver}.jsonl"));
        let path = socket.with_file_name(name);
        let mut lines = Lines { waiting: VecDeque::new(), bytes: 0, file: None, path, written: 0 };
        match std::fs::read_to_string(&lines.path) {
            // The last line may have been cut off.
            Ok(text) => {
                let whole = text.lines().filter(|line| serde_json::from_str::<Refusal>(line).is_ok());
                whole.for_each(|line| lines.push(line.to_owned()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %lines.path.display(), "refusals of before are lost: {error}");
            }
        }
        let dropped = lines.shrink();
        lines.rewrite();
        metrics.event_dropped(receiver, "spool-full", dropped);
        metrics.set_refusals_pending(receiver, lines.waiting.len());
        Self(Arc::new(Shared {
            receiver: receiver.to_owned(),
            lines: Mutex::new(lines),
            more: Notify::new(),
            metrics,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock()
    }

    /// Takes in a refusal.
    pub fn put(&self, refusal: &Refusal) {
        // A refusal that was read from JSON can be written as such.
        let Ok(line) = serde_json::to_string(refusal) else { return };
        let mut lines = self.lock();
        lines.append(&line);
        lines.push(line);
        let dropped = lines.shrink();
        let Shared { receiver, metrics, .. } = &*self.0;
        metrics.event_dropped(receiver, "spool-full", dropped);
        metrics.set_refusals_pending(receiver, lines.waiting.len());
        drop(lines);
        self.0.more.notify_one();
    }

    fn first(&self) -> Option<Refusal> {
        let lines = self.lock();
        // Only lines that were read or written by us are in here.
        lines.waiting.front().and_then(|line| serde_json::from_str(line).ok())
    }

    /// Takes the first out, where it is still this one (an overflow may have thrown it out meanwhile).
    fn take(&self, refusal: &Refusal) {
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

    /// Tells the receiver of them, for ever, in order.
    pub async fn keep(self, receiver: Arc<impl Post>) {
        let Shared { metrics, receiver: name, .. } = &*self.0;
        let mut patience = Patience::default();
        let mut rejected = 0;
        loop {
            let Some(refusal) = self.first() else {
                self.0.more.notified().await;
                continue;
            };
            match receiver.post(&Told::refused(&refusal)).await {
                Ok(()) => {
                    metrics.event_told(name, JobPhase::Refused);
                    patience.well();
                    rejected = 0;
                    self.take(&refusal);
                    continue;
                }
                Err(Fault::Rejected(why)) => {
                    rejected += 1;
                    if rejected >= TRIES {
                        tracing::warn!(
                            receiver = name,
                            "CloudEvents: {why}, {TRIES} times: it is thrown out"
                        );
                        metrics.event_dropped(name, "rejected", 1);
                        rejected = 0;
                        self.take(&refusal);
                        continue;
                    }
                }
                Err(fault) => tracing::debug!(receiver = name, "refusals wait: {fault}"),
            }
            metrics.event_failed(name);
            tokio::time::sleep(patience.pause()).await;
        }
    }
}

impl Lines {
    fn push(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.waiting.push_back(line);
    }

    fn pop(&mut self) {
        if let Some(line) = self.waiting.pop_front() {
            self.bytes -= line.len() + 1;
        }
    }

    /// Throws out what is too much; gives how many.
    fn shrink(&mut self) -> u64 {
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
            // Memory holds them still: what is lost is what a restart would find.
            tracing::warn!(path = %self.path.display(), "refusals are kept in memory only: {error}");
            self.file = None;
        }
    }

    fn write_beside(&self) -> io::Result<File> {
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&beside)?;
        for line in &self.waiting {
            file.write_all(line.as_bytes())?;
            file.write_all(b"\n")?;
        }
        std::fs::rename(&beside, &self.path)?;
        Ok(file)
    }

    /// Writes the file anew. A stop in the middle loses the file's part of what has been told or waits; so it is written
    /// beside and renamed.
    fn rewrite(&mut self) {
        let written = self.write_beside();
        self.written = self.bytes;
        self.file = match written {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), "refusals are kept in memory only: {error}");
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
    use crate::cloudevents::client::tests::refusal;

    /// Away until a moment of the paused clock; remembers what it took.
    struct Scripted {
        back: tokio::time::Instant,
        took: Mutex<Vec<serde_json::Value>>,
        tries: Mutex<u32>,
    }

    impl Post for Scripted {
        fn name(&self) -> &str {
            "ci"
        }

        async fn post(&self, told: &Told) -> Result<(), Fault> {
            *self.tries.lock() += 1;
            if tokio::time::Instant::now() < self.back {
                return Err(Fault::Away("503".into()));
            }
            self.took.lock().push(told.to_json("/s", &Default::default()));
            Ok(())
        }
    }

    fn spool(folder: &Path) -> Spool {
        Spool::open("ci", &folder.join("s.sock"), SinkMetrics::new(&Metrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_was_away_for_an_hour_gets_everything_once_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let back = tokio::time::Instant::now() + Duration::from_secs(3600);
        let receiver = Arc::new(Scripted { back, took: Mutex::default(), tries: Mutex::default() });
        let task = tokio::spawn(spool.clone().keep(receiver.clone()));
        for n in 0..100 {
            spool.put(&refusal(&format!("u{n}")));
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        tokio::time::sleep_until(back + Duration::from_secs(120)).await;
        task.abort();
        let ids: Vec<String> =
            receiver.took.lock().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, (0..100).map(|n| format!("u{n}-refused")).collect::<Vec<_>>());
        assert!(*receiver.tries.lock() < 300, "it is left alone while it is away");
        assert_eq!(std::fs::read_to_string(folder.path().join("s.sock.ci.jsonl")).unwrap(), "");
    }

    #[test]
    fn what_waits_outlives_the_process_and_a_line_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let first = spool(folder.path());
        first.put(&refusal("a"));
        first.put(&refusal("b"));
        first.take(&refusal("a"));
        drop(first);
        let file = folder.path().join("s.sock.ci.jsonl");
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.push_str("{\"decision\":\"Refu");
        std::fs::write(&file, text).unwrap();
        let again = spool(folder.path());
        // Told before the stop or not: the file does not say; the id does not change.
        let left: Vec<_> =
            again.lock().waiting.iter().map(|l| serde_json::from_str::<Refusal>(l).unwrap().uid).collect();
        assert_eq!(left, ["a", "b"]);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_go_first() {
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
