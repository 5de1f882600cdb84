//! Reads a log stream into a buffer of bounded size, and all of a longer log into the spool.

use std::{future::Future, time::Duration};

use futures::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};

use crate::{
    harvest::{
        captured::LogLoss,
        log_buffer::{HeadTail, LogExcerpt},
        tuning::{EARLY_TAIL, LONG_READ, PLACEHOLDER_MAX, STREAM_BUFFER},
    },
    object_store::Overflow,
};

/// Why reading ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    Complete,
    Broken(String),
    TimedOut,
    /// It was still arriving after [`LONG_READ`], when its time was over. Another attempt would take as long, unless
    /// the node was slow: it is made a few seconds later, and not for ever.
    TooLong,
    /// The caller needs no more.
    Stopped,
}

/// How long reading may take; none = as long as the stream lasts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamTimeouts {
    /// Between two pieces.
    pub(crate) idle: Option<Duration>,
    /// In all.
    pub(crate) deadline: Option<Instant>,
}

impl StreamTimeouts {
    async fn expired(self) {
        let idle = self.idle.map(|idle| Instant::now() + idle);
        match idle.into_iter().chain(self.deadline).min() {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    /// How a stream that was read since `begun` has ended when a timeout expires.
    fn end(self, begun: Instant) -> StreamEnd {
        let is_over = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_over && begun.elapsed() >= LONG_READ { StreamEnd::TooLong } else { StreamEnd::TimedOut }
    }
}

impl StreamEnd {
    /// Why a part of the log is missing.
    pub(crate) fn lost(self) -> Option<LogLoss> {
        match self {
            Self::Complete => None,
            Self::Broken(error) => Some(LogLoss::Passing(format!("the log stream broke: {error}"))),
            Self::TimedOut => Some(LogLoss::Passing("the log stream stalled".to_owned())),
            Self::TooLong => Some(LogLoss::Unconfirmed("the log was too long to read in time".to_owned())),
            Self::Stopped => Some(LogLoss::Final("reading was stopped before the log's end".to_owned())),
        }
    }
}

/// Reads a stream until its end, a timeout, or `stop`; keeps at most `max` bytes and passes a longer log to `overflow`.
/// Asks `room` before it keeps more bytes; if that refuses, it keeps what it has and a short end.
pub(crate) async fn read(
    mut stream: impl AsyncRead + Unpin,
    max: usize,
    mut overflow: Overflow,
    timeouts: StreamTimeouts,
    mut room: impl FnMut(usize) -> bool,
    stop: impl Future<Output = ()>,
) -> (LogExcerpt, StreamEnd) {
    let mut log = HeadTail::new(max);
    let mut buffer = vec![0; STREAM_BUFFER];
    let mut stop = std::pin::pin!(stop);
    let begun = Instant::now();
    let end = loop {
        let n = tokio::select! {
            // Data that has arrived is read before the end is noticed.
            biased;
            read = stream.read(&mut buffer) => match read {
                Ok(0) => break StreamEnd::Complete,
                Ok(n) => n,
                Err(error) => break StreamEnd::Broken(error.to_string()),
            },
            () = &mut stop => break StreamEnd::Stopped,
            () = timeouts.expired() => break timeouts.end(begun),
        };
        let more = log.grows_by(n);
        if more > 0 && !room(more) {
            log.freeze(EARLY_TAIL);
        }
        overflow.write_piece(log.before_overflow(n), &buffer[..n]).await;
        log.push(&buffer[..n]);
    };
    let mut excerpt = LogExcerpt { full: overflow.finish().await, ..log.finish() };
    excerpt.cut_at_characters();
    (excerpt, end)
}

/// Whether this is the kubelet's placeholder rather than a log: it answers 200 and this body if the container's log file
/// is gone (`pkg/kubelet/kuberuntime/kuberuntime_container.go`, `ReadLogs`).
pub(crate) fn is_placeholder(log: &LogExcerpt) -> bool {
    let Ok(text) = std::str::from_utf8(&log.head) else { return false };
    let id = text.trim_end().strip_prefix("unable to retrieve container logs for ");
    log.length < PLACEHOLDER_MAX
        && id.and_then(|id| id.split_once("://")).is_some_and(|(runtime, id)| {
            !runtime.is_empty() && !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use futures::{Stream, StreamExt, TryStreamExt};
    use proptest::prelude::*;

    use super::*;
    use crate::object_store::{FullLog, Spool};

    const FOREVER: StreamTimeouts = StreamTimeouts { idle: None, deadline: None };

    fn unused() -> Overflow {
        Overflow::new(None)
    }

    fn stream(pieces: impl Stream<Item = std::io::Result<Vec<u8>>> + Unpin) -> impl AsyncRead + Unpin {
        pieces.into_async_read()
    }

    fn first_piece_only() -> impl AsyncRead + Unpin {
        stream(Box::pin(futures::stream::iter([Ok(b"first".to_vec())]).chain(futures::stream::pending())))
    }

    #[test]
    fn the_kubelets_placeholder_is_not_a_log() {
        let log = |text: &[u8]| LogExcerpt {
            head: text.to_vec(),
            length: text.len() as u64,
            ..LogExcerpt::default()
        };
        let is_placeholder = |text| is_placeholder(&log(text));
        assert!(is_placeholder(b"unable to retrieve container logs for containerd://0a1b"));
        assert!(is_placeholder(b"unable to retrieve container logs for containerd://0a1b\n"));
        assert!(!is_placeholder(b"unable to retrieve container logs for containerd://0a1b\nand more"));
        assert!(!is_placeholder(b"unable to retrieve the parcel"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_stream_times_out() {
        let deadline = Some(Instant::now() + Duration::from_secs(60));
        let timeouts = StreamTimeouts { idle: Some(Duration::from_secs(5)), deadline };
        let begun = Instant::now();
        let (log, end) =
            read(first_piece_only(), 100, unused(), timeouts, |_| true, std::future::pending()).await;
        assert_eq!(log.head, b"first");
        assert_eq!((end, begun.elapsed().as_secs()), (StreamEnd::TimedOut, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_stream_ends_at_its_deadline() {
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Some((Ok(b"x".to_vec()), ()))
        });
        let deadline = Some(Instant::now() + Duration::from_secs(10));
        let timeouts = StreamTimeouts { idle: Some(Duration::from_secs(5)), deadline };
        let (log, end) =
            read(stream(Box::pin(drops)), 100, unused(), timeouts, |_| true, std::future::pending()).await;
        assert_eq!((log.head, end), (b"xx".to_vec(), StreamEnd::TimedOut));
    }

    /// It is read a few times more, since a slow node may have recovered; a stream that had less time, until it ends.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_ends_is_too_long() {
        let drops = || {
            futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_secs(4)).await;
                Some((Ok(b"x".to_vec()), ()))
            })
        };
        let (stalled, long) = ("the log stream stalled", "the log was too long to read in time");
        for (time, lost) in [
            (LONG_READ - Duration::from_secs(1), LogLoss::Passing(stalled.to_owned())),
            (LONG_READ, LogLoss::Unconfirmed(long.to_owned())),
        ] {
            let deadline = Some(Instant::now() + time);
            let timeouts = StreamTimeouts { idle: Some(Duration::from_secs(5)), deadline };
            let stream = stream(Box::pin(drops()));
            let (_, end) = read(stream, 100, unused(), timeouts, |_| true, std::future::pending()).await;
            assert_eq!(end.lost(), Some(lost), "{time:?}");
        }
    }

    #[tokio::test]
    async fn a_broken_stream_keeps_what_came_before() {
        let pieces = [Ok(b"first".to_vec()), Err(std::io::Error::other("reset"))];
        let (log, end) = read(
            stream(futures::stream::iter(pieces)),
            100,
            unused(),
            FOREVER,
            |_| true,
            std::future::pending(),
        )
        .await;
        assert_eq!((log.head.as_slice(), &end), (&b"first"[..], &StreamEnd::Broken("reset".into())));
        assert_eq!(end.lost(), Some(LogLoss::Passing("the log stream broke: reset".into())));
    }

    #[tokio::test]
    async fn a_followed_stream_ends_when_it_is_stopped() {
        let (log, end) = read(first_piece_only(), 100, unused(), FOREVER, |_| true, async {}).await;
        assert_eq!((log.head.as_slice(), end), (&b"first"[..], StreamEnd::Stopped));
    }

    #[tokio::test]
    async fn a_log_without_room_keeps_what_it_has_and_some_of_its_end() {
        let max = 3 * EARLY_TAIL;
        let lines = 10_000;
        let pieces = || (0..lines).map(|n| Ok(format!("{n:09}\n").into_bytes()));
        for left in [0, 35, 75, 1_000_000] {
            let mut left_now = left;
            let room = |bytes| {
                let granted = left_now >= bytes;
                left_now -= if granted { bytes } else { 0 };
                granted
            };
            let pieces = stream(futures::stream::iter(pieces()));
            let (log, end) = read(pieces, max, unused(), FOREVER, room, std::future::pending()).await;
            assert_eq!((end, log.length), (StreamEnd::Complete, 10 * lines));
            assert!(log.bytes() <= left + EARLY_TAIL && log.bytes() <= max, "{left}: {}", log.bytes());
            assert!(log.tail.ends_with(b"000009998\n000009999\n"), "{left}: {log:?}");
            assert!(b"000000000\n000000001\n".starts_with(&log.head[..log.head.len().min(20)]));
        }
    }

    fn unzipped(full: &FullLog) -> Vec<u8> {
        let FullLog::Spooled(spooled) = full else { panic!("{full:?}") };
        let file = std::fs::File::open(spooled.path()).unwrap();
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// For any split into pieces, and whenever memory runs out: a log that is cut is spooled in full.
        #[test]
        fn a_log_that_is_cut_is_spooled_in_full(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            max in 0usize..64,
            frozen in prop::option::of((0usize..12, 0usize..8)),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let spool = Spool::open(folder.path(), 1 << 20).unwrap();
            let all: Vec<u8> = pieces.concat();
            let (excerpt, full) = runtime.block_on(async {
                let mut log = HeadTail::new(max);
                let mut overflow = Overflow::new(Some(&spool));
                for (n, piece) in pieces.iter().enumerate() {
                    if let Some((_, tail)) = frozen.filter(|(at, _)| *at == n) {
                        log.freeze(tail);
                    }
                    overflow.write_piece(log.before_overflow(piece.len()), piece).await;
                    log.push(piece);
                }
                (log.finish(), overflow.finish().await)
            });
            if excerpt.left_out() == 0 {
                prop_assert_eq!(&excerpt.head, &all);
                prop_assert_eq!(&full, &FullLog::Absent);
            } else {
                prop_assert_eq!(unzipped(&full), all);
            }
            drop(full);
            prop_assert_eq!((std::fs::read_dir(folder.path()).unwrap().count(), spool.used()), (0, 0));
        }
    }
}
