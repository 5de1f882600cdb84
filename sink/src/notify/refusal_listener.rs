//! Receives refusals from the webhook over a local socket, one JSON object per line.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use job_handler_shared::{
    ledger::refusal::{MAX_LINE_BYTES, Refusal},
    process::admin::ReadyHandle,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader},
    net::UnixListener,
    sync::mpsc,
    task::JoinSet,
};

use crate::metrics::SinkMetrics;

/// Simultaneous connections; a sink has one webhook beside it.
const CONNECTIONS: usize = 16;

/// The socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the refusal socket {path}: {source}. Choose another path with --refusal-socket")]
pub(crate) struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// Binds the socket. Replaces a socket that a dead predecessor left, and nothing else of that name.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let wrong = |source| SocketError { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(wrong)?,
        Ok(_) => return Err(wrong(io::Error::other("a file that is not a socket has that name"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let listener = UnixListener::bind(path).map_err(wrong)?;
    // Only the webhook beside us, which runs as the same user or group, may send refusals.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(wrong)?;
    Ok(listener)
}

/// Accepts connections and forwards the refusals that arrive. Returns only with an error: when accepting fails, or
/// when the receiver is gone.
pub(crate) async fn serve(
    listener: UnixListener,
    refusals: mpsc::Sender<Refusal>,
    metrics: SinkMetrics,
    ready: ReadyHandle,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    ready.set_ready();
    loop {
        tokio::select! {
            () = refusals.closed() => return Err(io::Error::other("the refusal writer has ended")),
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let (stream, _) = accepted?;
                connections.spawn(receive(stream, refusals.clone(), metrics.clone()));
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!("a connection to the refusal socket panicked: {error}");
                }
            }
        }
    }
}

/// Sends on the refusals that arrive on one connection, until it ends.
pub async fn receive(
    connection: impl AsyncRead + Unpin,
    refusals: mpsc::Sender<Refusal>,
    metrics: SinkMetrics,
) {
    let mut reader = BufReader::new(connection);
    loop {
        match read_line(&mut reader).await {
            Ok(SocketLine::Text(text)) => match Refusal::parse(&text) {
                Ok(refusal) => {
                    if refusals.try_send(refusal).is_err() {
                        metrics.refusal_dropped("queue-full");
                    }
                }
                Err(error) => {
                    metrics.refusal_dropped("unreadable");
                    tracing::warn!("cannot parse a line from the refusal socket: {error}");
                }
            },
            Ok(SocketLine::TooLong) => {
                metrics.refusal_dropped("too-long");
                tracing::warn!("dropped a line from the refusal socket: longer than {MAX_LINE_BYTES} bytes");
            }
            Ok(SocketLine::End) => return,
            Err(error) => {
                tracing::debug!("a connection to the refusal socket failed: {error}");
                return;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SocketLine {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Reads up to the next newline and buffers at most [`MAX_LINE_BYTES`] bytes.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<SocketLine> {
    let (mut text, mut too_long) = (Vec::new(), false);
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            // A line without its newline was cut off.
            return Ok(SocketLine::End);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let taken = end.unwrap_or(chunk.len());
        too_long |= text.len() + taken > MAX_LINE_BYTES;
        if !too_long {
            text.extend_from_slice(&chunk[..taken]);
        }
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(if too_long { SocketLine::TooLong } else { SocketLine::Text(text) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_and_cut_off_lines_are_dropped() {
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        let input = format!("one\n{long}\ntwo\ncut off");
        let mut reader = BufReader::with_capacity(1000, input.as_bytes());
        assert_eq!(read_line(&mut reader).await.unwrap(), SocketLine::Text(b"one".to_vec()));
        assert_eq!(read_line(&mut reader).await.unwrap(), SocketLine::TooLong);
        assert_eq!(read_line(&mut reader).await.unwrap(), SocketLine::Text(b"two".to_vec()));
        assert_eq!(read_line(&mut reader).await.unwrap(), SocketLine::End);
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(listen(&path).unwrap());
        assert!(path.exists());
        let _second = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let file = folder.path().join("file");
        std::fs::write(&file, "content").unwrap();
        let error = listen(&file).unwrap_err().to_string();
        assert!(error.contains("--refusal-socket") && file.exists(), "{error}");
    }
}
