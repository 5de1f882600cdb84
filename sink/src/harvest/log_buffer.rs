//! The head and the tail of a log of any length, in bounded memory.

use std::{future::Future, time::Duration};

use futures::{AsyncRead, AsyncReadExt};
use sha2::{Digest, Sha256};

use crate::object_store::{Overflow, Whole};

/// What was kept of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The beginning; all of it, where nothing was left out.
    pub head: Vec<u8>,
    /// The end, where something was left out between.
    pub tail: Vec<u8>,
    /// Length of the whole.
    pub length: u64,
    /// SHA-256 of the whole, hex.
    pub sha256: String,
    /// Where the whole is, if something was left out.
    pub whole: Whole,
}

impl Kept {
    /// Bytes that were kept.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Bytes that were left out.
    pub fn left_out(&self) -> u64 {
        self.length.saturating_sub(self.bytes() as u64)
    }

    /// Where something was left out: moves the edges of the gap to those of UTF-8 characters, so that a text stays one.
    pub fn cut_at_characters(&mut self) {
        if self.left_out() == 0 {
            return;
        }
        if let Err(error) = std::str::from_utf8(&self.head)
            && error.error_len().is_none()
        {
            self.head.truncate(error.valid_up_to());
        }
        let middle = self.tail.iter().take(3).take_while(|b| **b & 0b1100_0000 == 0b1000_0000).count();
        self.tail.drain(..middle);
    }

    /// Keeps at most `max` bytes, the first half of them from the beginning and the rest from the end.
    pub fn shrink(&mut self, max: usize) {
        if self.bytes() <= max {
            return;
        }
        if self.left_out() == 0 {
            // All of it is in the head; from here on the end is apart.
            self.tail = self.head.split_off(self.head.len() / 2);
        }
        let (head, tail) = (self.head.len(), self.tail.len());
        // What one of them does not need is for the other.
        let of_tail = tail.min((max - max / 2).max(max.saturating_sub(head)));
        self.head.truncate(max - of_tail);
        self.tail.drain(..tail - of_tail);
        self.head.shrink_to_fit();
        self.tail.shrink_to_fit();
        self.cut_at_characters();
    }

    /// Writes head, gap and tail.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        if self.left_out() > 0 {
            if self.head.last().is_some_and(|b| *b != b'\n') {
                out.push(b'\n');
            }
            let all = match &self.whole {
                Whole::Stored(whole) => format!("; all of it, gzipped: {} ", whole.url),
                _ => " ".to_owned(),
            };
            let gap = format!("[... {} of {} bytes left out{all}...]\n", self.left_out(), self.length);
            out.extend_from_slice(gap.as_bytes());
            out.extend_from_slice(&self.tail);
        }
    }
}

/// Takes in a log piece by piece and keeps its head and tail.
#[derive(Debug)]
pub struct HeadTail {
    head: Vec<u8>,
    head_max: usize,
    /// A ring; `next` is where the oldest byte is once it is full.
    ring: Vec<u8>,
    ring_max: usize,
    next: usize,
    length: u64,
    digest: Sha256,
}

impl HeadTail {
    /// Keeps at most `max` bytes: the first half of them from the beginning, the rest from the end.
    pub fn new(max: usize) -> Self {
        let head_max = max / 2;
        Self {
            head: Vec::new(),
            head_max,
            ring: Vec::new(),
            ring_max: max - head_max,
            next: 0,
            length: 0,
            digest: Sha256::new(),
        }
    }

    /// How many more bytes the next piece would take.
    pub fn grows_by(&self, piece: usize) -> usize {
        piece.min(self.head_max - self.head.len() + self.ring_max.saturating_sub(self.ring.len()))
    }

    /// Whether something would be left out for the first time if the next piece came.
    pub fn overflows(&self, piece: usize) -> bool {
        let room = self.head_max - self.head.len() + self.ring_max.saturating_sub(self.ring.len());
        piece > room && self.length == (self.head.len() + self.ring.len()) as u64
    }

    /// All that has come, while nothing was left out: until then, the ring has not been turned.
    pub fn so_far(&self) -> [&[u8]; 2] {
        [&self.head, &self.ring]
    }

    /// Grows no more, for want of room: of the end, so many bytes are kept, or what is kept of it by now.
    pub fn freeze(&mut self, tail: usize) {
        self.head_max = self.head.len();
        if self.ring.len() < self.ring_max {
            // Not full, so that it has not been turned round yet.
            self.ring_max = self.ring_max.min(self.ring.len().max(tail));
        }
    }

    /// Takes in the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.digest.update(piece);
        let (head, rest) = piece.split_at(piece.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(head);
        // Only the last `ring_max` bytes of a piece can survive it.
        let rest = &rest[rest.len().saturating_sub(self.ring_max)..];
        let (grow, wrap) = rest.split_at(rest.len().min(self.ring_max - self.ring.len()));
        self.ring.extend_from_slice(grow);
        if wrap.is_empty() || self.ring_max == 0 {
            return;
        }
        let (first, second) = wrap.split_at(wrap.len().min(self.ring_max - self.next));
        self.ring[self.next..self.next + first.len()].copy_from_slice(first);
        self.ring[..second.len()].copy_from_slice(second);
        self.next = (self.next + wrap.len()) % self.ring_max;
    }

    /// What was kept.
    pub fn finish(mut self) -> Kept {
        self.ring.rotate_left(self.next);
        let mut kept = Kept {
            head: self.head,
            tail: self.ring,
            length: self.length,
            sha256: format!("{:x}", self.digest.finalize()),
            whole: Whole::Nowhere,
        };
        if kept.left_out() == 0 {
            kept.head.append(&mut kept.tail);
        }
        kept
    }
}

/// Reads a stream to its end, or until `patience` runs out without a byte or `deadline` in all; keeps at most `max`
/// bytes, and hands all of a longer one to `overflow`. The second part tells why it ended early.
pub async fn read(
    mut stream: impl AsyncRead + Unpin,
    max: usize,
    mut overflow: Overflow,
    patience: Duration,
    deadline: tokio::time::Instant,
) -> (Kept, Option<String>) {
    let mut kept = HeadTail::new(max);
    let mut buffer = vec![0; 32 << 10];
    let early = loop {
        let end = deadline.min(tokio::time::Instant::now() + patience);
        match tokio::time::timeout_at(end, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => break None,
            Ok(Ok(n)) => {
                overflow.pass(&kept, &buffer[..n]).await;
                kept.push(&buffer[..n]);
            }
            Ok(Err(error)) => break Some(format!("the stream broke: {error}")),
            Err(_) => break Some("the stream stood still, or was too long to read in time".to_owned()),
        }
    };
    (Kept { whole: overflow.finish().await, ..kept.finish() }, early)
}

/// Reads a stream that is followed: to its end, or until `enough` is; `room` is asked before so many more bytes are
/// kept. The second part tells why it ended early.
pub async fn follow(
    mut stream: impl AsyncRead + Unpin,
    max: usize,
    mut overflow: Overflow,
    mut room: impl FnMut(usize) -> bool,
    tail: usize,
    enough: impl Future<Output = ()>,
) -> (Kept, Option<String>) {
    let mut kept = HeadTail::new(max);
    let mut buffer = vec![0; 8 << 10];
    let mut enough = std::pin::pin!(enough);
    let early = loop {
        let n = tokio::select! {
            // What is there is taken before the end.
            biased;
            read = stream.read(&mut buffer) => match read {
                Ok(0) => break None,
                Ok(n) => n,
                Err(error) => break Some(format!("the stream broke: {error}")),
            },
            () = &mut enough => break Some("its end was not waited for".to_owned()),
        };
        let more = kept.grows_by(n);
        if more > 0 && !room(more) {
            kept.freeze(tail);
        }
        overflow.pass(&kept, &buffer[..n]).await;
        kept.push(&buffer[..n]);
    };
    (Kept { whole: overflow.finish().await, ..kept.finish() }, early)
}

/// Whether a whole answer of the log API is the kubelet's excuse rather than a log. The kubelet answers 200 and this
/// body where the container's log file is gone (`pkg/kubelet/kuberuntime/kuberuntime_container.go`, `ReadLogs`).
pub fn is_excuse(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let id = text.trim_end().strip_prefix("unable to retrieve container logs for ");
    id.and_then(|id| id.split_once("://")).is_some_and(|(runtime, id)| {
        !runtime.is_empty() && !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_marked() {
        let mut log = HeadTail::new(8);
        log.push(b"abcdefghijklmnop");
        let kept = log.finish();
        let mut out = Vec::new();
        kept.write_to(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "abcd\n[... 8 of 16 bytes left out ...]\nmnop");
    }

    #[test]
    fn a_gap_splits_no_character() {
        for max in 0..30 {
            let mut log = HeadTail::new(max);
            log.push("aäöü€𝄞 and äöü€𝄞z".as_bytes());
            let mut kept = log.finish();
            kept.cut_at_characters();
            assert!(std::str::from_utf8(&kept.head).is_ok() && std::str::from_utf8(&kept.tail).is_ok());
            assert!(kept.head.len() + kept.tail.len() + 6 >= max.min(kept.length as usize));
        }
    }

    #[test]
    fn an_excuse_is_no_log() {
        assert!(is_excuse(b"unable to retrieve container logs for containerd://0a1b"));
        assert!(is_excuse(b"unable to retrieve container logs for containerd://0a1b\n"));
        assert!(!is_excuse(b"unable to retrieve container logs for containerd://0a1b\nand more"));
        assert!(!is_excuse(b"unable to retrieve the parcel"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stands_still_is_left() {
        let stream = futures::stream::iter([Ok(b"first".to_vec())]).chain(futures::stream::pending());
        let stream = futures::TryStreamExt::into_async_read(stream);
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let (kept, early) =
            read(Box::pin(stream), 100, Overflow::into(None), Duration::from_secs(5), end).await;
        assert_eq!(kept.head, b"first");
        assert!(early.is_some());
    }

    use futures::StreamExt;

    #[tokio::test]
    async fn a_log_without_room_keeps_what_it_has_and_some_of_its_end() {
        let pieces = || (0..100).map(|n| Ok(format!("{n:09}\n").into_bytes()));
        let stream = || futures::TryStreamExt::into_async_read(futures::stream::iter(pieces()));
        for left in [0, 35, 75, 100_000] {
            let mut left_now = left;
            let room = |bytes| {
                let granted = left_now >= bytes;
                left_now -= if granted { bytes } else { 0 };
                granted
            };
            let (kept, early) =
                follow(stream(), 100, Overflow::into(None), room, 20, std::future::pending()).await;
            assert_eq!((early, kept.length), (None, 1000));
            assert!(kept.bytes() <= left + 20 && kept.bytes() <= 100, "{left}: {}", kept.bytes());
            assert!(kept.tail.ends_with(b"000000098\n000000099\n"), "{left}: {kept:?}");
            assert!(b"000000000\n000000001\n".starts_with(&kept.head[..kept.head.len().min(20)]));
        }
    }

    #[tokio::test]
    async fn a_followed_stream_ends_when_it_is_enough() {
        let stream = futures::stream::iter([Ok(b"first".to_vec())]).chain(futures::stream::pending());
        let stream = Box::pin(futures::TryStreamExt::into_async_read(stream));
        let (kept, early) = follow(stream, 100, Overflow::into(None), |_| true, 0, async {}).await;
        assert!(kept.head == b"first" && early.is_some());
    }

    proptest! {
        /// However often it is made smaller: it fits, and what is there are the log's own ends.
        #[test]
        fn a_kept_log_can_be_made_smaller(whole in prop::collection::vec(0u8..128, 0..200), first in 0usize..200, then in 0usize..200) {
            let mut log = HeadTail::new(first);
            log.push(&whole);
            let mut kept = log.finish();
            kept.shrink(then);
            prop_assert!(kept.bytes() <= first.min(then) || kept.bytes() == whole.len());
            prop_assert!(kept.bytes() == whole.len().min(first).min(then));
            prop_assert!(whole.starts_with(&kept.head) && whole.ends_with(&kept.tail));
            prop_assert_eq!(kept.left_out() as usize, whole.len() - kept.bytes());
        }
    }

    proptest! {
        /// However it is cut into pieces: short logs are whole, long ones keep exactly their ends.
        #[test]
        fn keeps_head_and_tail(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12), max in 0usize..64,
        ) {
            let whole: Vec<u8> = pieces.concat();
            let mut log = HeadTail::new(max);
            pieces.iter().for_each(|piece| log.push(piece));
            let kept = log.finish();
            prop_assert_eq!(kept.length, whole.len() as u64);
            prop_assert_eq!(kept.sha256.clone(), format!("{:x}", Sha256::digest(&whole)));
            if whole.len() <= max {
                prop_assert_eq!(&kept.head, &whole);
                prop_assert!(kept.tail.is_empty());
            } else {
                prop_assert_eq!(&kept.head[..], &whole[..max / 2]);
                prop_assert_eq!(&kept.tail[..], &whole[whole.len() - (max - max / 2)..]);
            }
        }
    }
}
