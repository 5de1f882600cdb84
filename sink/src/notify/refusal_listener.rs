//! Takes refusals from the webhook's socket and tells of them by Events: on the policy, on the Job's owner and on the
//! refused Job's name.
//!
//! `kubectl describe` finds Events by the uid of what they are about (`kubectl/pkg/describe/describe.go`,
//! `searchEvents`), `kubectl events --for` by kind, apiVersion and name (`kubectl/pkg/cmd/events/events.go`).

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use job_handler_shared::{
    kube::error::{ApiError, call},
    ledger::refusal::{MAX_LINE_BYTES, Refusal, RefusalKind},
    policy::status::LastRefusal,
    process::admin::ReadyHandle,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    cloudevents::refusal_spool::Spools,
    metrics::SinkMetrics,
    model::text::whole_seconds,
    notify::{
        recorder::{EventSpec, Recorder},
        refusal_series::{Series, Write},
    },
    observe::store::Store,
};

/// Refusals that wait to be told; more are dropped and counted.
const QUEUE: usize = 4096;
/// Connections at a time; there is one webhook beside a sink.
const CONNECTIONS: usize = 16;
/// Events that are written at a time.
const WRITES: usize = 8;

/// Another sink may add to an Event's count at the same time; so often it is tried again.
const TRIES: usize = 5;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the refusal socket {path}: {source}. Choose another place with --refusal-socket")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// Binds the socket. A socket that a dead predecessor left is removed; anything else of that name is not.
///
/// # Errors
/// Names the path.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let wrong = |source| SocketError { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(wrong)?,
        Ok(_) => return Err(wrong(io::Error::other("something that is not a socket has that name"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let listener = UnixListener::bind(path).map_err(wrong)?;
    // Only the webhook beside us, which runs as the same user or group, may tell us of refusals.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    Ok(listener)
}

/// Serves the socket for ever.
///
/// # Errors
/// Where it can accept no more.
pub async fn serve(
    listener: UnixListener,
    store: Store,
    recorder: Recorder,
    metrics: SinkMetrics,
    spools: Spools,
    ready: ReadyHandle,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let mut writer = std::pin::pin!(write(receiver, store, recorder, metrics.clone(), spools));
    ready.set_ready();
    loop {
        tokio::select! {
            () = &mut writer => return Err(io::Error::other("the writer of Events has ended")),
            accepted = listener.accept(), if tasks.len() < CONNECTIONS => {
                let (stream, _) = accepted?;
                tasks.spawn(connection(stream, sender.clone(), metrics.clone()));
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!("a connection to the refusal socket died: {error}");
                }
            }
        }
    }
}

async fn connection(stream: UnixStream, sender: mpsc::Sender<Refusal>, metrics: SinkMetrics) {
    let mut reader = BufReader::new(stream);
    loop {
        match line(&mut reader).await {
            Ok(Line::Text(text)) => match serde_json::from_slice::<Refusal>(&text) {
                Ok(refusal) => {
                    if sender.try_send(refusal).is_err() {
                        metrics.refusal_dropped("queue-full");
                    }
                }
                Err(error) => {
                    metrics.refusal_dropped("unreadable");
                    tracing::warn!("a line on the refusal socket is no refusal: {error}");
                }
            },
            Ok(Line::TooLong) => {
                metrics.refusal_dropped("too-long");
                tracing::warn!("a line on the refusal socket is longer than {MAX_LINE_BYTES} bytes");
            }
            Ok(Line::End) => return,
            Err(error) => {
                tracing::debug!("the refusal socket's peer is gone: {error}");
                return;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Reads up to the next newline, keeping at most [`MAX_LINE_BYTES`] bytes.
async fn line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Line> {
    let (mut text, mut too_long) = (Vec::new(), false);
    loop {
        let piece = reader.fill_buf().await?;
        if piece.is_empty() {
            // A line without its newline is one that was cut off.
            return Ok(Line::End);
        }
        let end = piece.iter().position(|b| *b == b'\n');
        let taken = end.unwrap_or(piece.len());
        too_long |= text.len() + taken > MAX_LINE_BYTES;
        if !too_long {
            text.extend_from_slice(&piece[..taken]);
        }
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(if too_long { Line::TooLong } else { Line::Text(text) });
        }
    }
}

async fn write(
    mut receiver: mpsc::Receiver<Refusal>,
    store: Store,
    recorder: Recorder,
    metrics: SinkMetrics,
    spools: Spools,
) {
    let mut series = Series::default();
    let mut writes = JoinSet::new();
    let mut waiting: std::collections::VecDeque<Write> = std::collections::VecDeque::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        while writes.len() < WRITES
            && let Some(next) = waiting.pop_front()
        {
            writes.spawn(put(next, recorder.clone(), metrics.clone()));
        }
        tokio::select! {
            Some(refusal) = receiver.recv() => {
                metrics.job_refused(match refusal.decision {
                    RefusalKind::Refused => "refused",
                    RefusalKind::Queued => "queued",
                    RefusalKind::WouldRefuse => "would-refuse",
                });
                if refusal.decision == RefusalKind::Refused {
                    let sinks = store.sinks_of(&refusal.policy.uid);
                    spools.put(&refusal, sinks.iter().map(String::as_str));
                    store.put_refusal(&refusal.policy.uid, LastRefusal {
                        job: format!("{}/{}", refusal.namespace, refusal.job),
                        reason: refusal.message.clone(),
                        time: Time(whole_seconds(refusal.at)),
                    });
                }
                let (now, dropped) = series.offer(&refusal, Instant::now());
                for _ in 0..dropped {
                    metrics.refusal_dropped("damped");
                }
                waiting.extend(now);
            }
            _ = tick.tick() => waiting.extend(series.due(Instant::now())),
            Some(ended) = writes.join_next(), if !writes.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!("the writing of an Event died: {error}");
                }
            }
            else => return,
        }
    }
}

/// Events of refusals are told as well as can be: one that fails is counted, the next of its series tells the count.
async fn put(write: Write, recorder: Recorder, metrics: SinkMetrics) {
    let outcome = match &write {
        Write::First { told, counts } => match recorder.publish(told).await {
            Ok(false) if *counts => count_on(&recorder, told, 1, jiff::Timestamp::now()).await,
            other => other.map(drop),
        },
        Write::Count { first, more, last } => count_on(&recorder, first, *more, *last).await,
    };
    if let Err(error) = outcome
        && !error.is_terminating()
    {
        metrics.refusal_dropped("not-written");
        tracing::warn!("an Event about a refusal: {error}");
    }
}

/// Adds to the count of an Event, to which other sinks add too. Where it is gone (its time has run out) it is told anew.
async fn count_on(
    recorder: &Recorder,
    told: &EventSpec,
    more: i32,
    last: jiff::Timestamp,
) -> Result<(), ApiError> {
    let api = recorder.api(&told.namespace);
    let what = format!("count on in event {}/{}", told.namespace, told.name);
    let mut tries = 0;
    loop {
        // A patch of nothing writes nothing, and answers with what is there: no further right is needed to read it.
        let params = PatchParams::default();
        let there = match call(&what, api.patch(&told.name, &params, &Patch::Merge(json!({})))).await {
            Err(error) if error.is_not_found() => return recorder.publish(told).await.map(drop),
            other => other?,
        };
        let series = there.series.as_ref();
        let count = series.map_or(1, |series| series.count).saturating_add(more);
        let last = series.map_or(last, |series| series.last_observed_time.0.max(last));
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": there.metadata.resource_version},
            "series": {"count": count, "lastObservedTime": MicroTime(last)},
        }));
        tries += 1;
        match call(&what, api.patch(&told.name, &params, &patch)).await {
            Err(error) if error.is_conflict() && tries < TRIES => {}
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded() {
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        let input = format!("one\n{long}\ntwo\ncut off");
        let mut reader = BufReader::with_capacity(1000, input.as_bytes());
        assert_eq!(line(&mut reader).await.unwrap(), Line::Text(b"one".to_vec()));
        assert_eq!(line(&mut reader).await.unwrap(), Line::TooLong);
        assert_eq!(line(&mut reader).await.unwrap(), Line::Text(b"two".to_vec()));
        assert_eq!(line(&mut reader).await.unwrap(), Line::End);
    }

    #[tokio::test]
    async fn a_dead_predecessors_socket_is_taken_over_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(listen(&path).unwrap());
        assert!(path.exists());
        let _again = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let error = listen(&file).unwrap_err().to_string();
        assert!(error.contains("--refusal-socket") && file.exists(), "{error}");
    }
}
