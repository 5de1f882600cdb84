//! The head and the tail of a log of any length, in bounded memory.

use sha2::{Digest, Sha256};

use crate::object_store::FullLog;

/// The beginning and the end of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogExcerpt {
    /// The beginning; the full log if nothing is left out.
    pub head: Vec<u8>,
    /// The end, if something is left out between.
    pub tail: Vec<u8>,
    /// Length of the full log.
    pub length: u64,
    /// SHA-256 of the full log, hex.
    pub sha256: String,
    /// Where the full log is, if something is left out.
    pub(crate) full: FullLog,
}

impl LogExcerpt {
    /// Length of both parts.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Length of the gap between them.
    pub(crate) fn left_out(&self) -> u64 {
        self.length.saturating_sub(self.bytes() as u64)
    }

    /// Moves the edges of the gap to those of UTF-8 characters, so that text stays text.
    pub(crate) fn cut_at_characters(&mut self) {
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

    /// Shortens it to `max` bytes, half of them from the beginning and the rest from the end.
    pub(crate) fn shrink(&mut self, max: usize) {
        if self.bytes() <= max {
            return;
        }
        if self.left_out() == 0 {
            // The full log is in the head until now.
            self.tail = self.head.split_off(self.head.len() / 2);
        }
        let (head, tail) = (self.head.len(), self.tail.len());
        // What one part does not need, the other may use.
        let of_tail = tail.min((max - max / 2).max(max.saturating_sub(head)));
        self.head.truncate(max - of_tail);
        self.tail.drain(..tail - of_tail);
        self.head.shrink_to_fit();
        self.tail.shrink_to_fit();
        self.cut_at_characters();
    }

    /// Appends beginning, a line about the gap, and end.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        if self.left_out() > 0 {
            if self.head.last().is_some_and(|b| *b != b'\n') {
                out.push(b'\n');
            }
            let all = match &self.full {
                FullLog::Stored(object) => format!("; all of it, gzipped: {} ", object.url),
                _ => " ".to_owned(),
            };
            let gap = format!("[... {} of {} bytes left out{all}...]\n", self.left_out(), self.length);
            out.extend_from_slice(gap.as_bytes());
            out.extend_from_slice(&self.tail);
        }
    }
}

/// Collects a log piece by piece and keeps its head and tail.
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

    /// By how many bytes the next piece would grow the buffer.
    pub(crate) fn grows_by(&self, piece: usize) -> usize {
        piece.min(self.head_max - self.head.len() + self.ring_max.saturating_sub(self.ring.len()))
    }

    /// The log so far, if the next piece is the first of which something is left out.
    pub(crate) fn before_overflow(&self, piece: usize) -> Option<[&[u8]; 2]> {
        let room = self.head_max - self.head.len() + self.ring_max.saturating_sub(self.ring.len());
        let is_complete = self.length == (self.head.len() + self.ring.len()) as u64;
        // While it is complete, the ring has not wrapped.
        (piece > room && is_complete).then_some([&self.head, &self.ring])
    }

    /// Stops growing, because memory is used up: of the end, it keeps `tail` bytes or what it has already.
    pub(crate) fn freeze(&mut self, tail: usize) {
        self.head_max = self.head.len();
        if self.ring.len() < self.ring_max {
            // Not full, so it has not wrapped yet.
            self.ring_max = self.ring_max.min(self.ring.len().max(tail));
        }
    }

    /// Adds the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.digest.update(piece);
        let (head, rest) = piece.split_at(piece.len().min(self.head_max - self.head.len()));
        self.head.extend_from_slice(head);
        // Earlier bytes of the piece would be overwritten by its end.
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

    /// Ends the log.
    pub fn finish(mut self) -> LogExcerpt {
        self.ring.rotate_left(self.next);
        let mut excerpt = LogExcerpt {
            head: self.head,
            tail: self.ring,
            length: self.length,
            sha256: format!("{:x}", self.digest.finalize()),
            full: FullLog::Absent,
        };
        if excerpt.left_out() == 0 {
            excerpt.head.append(&mut excerpt.tail);
        }
        excerpt
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_marked_in_the_text() {
        let mut log = HeadTail::new(8);
        log.push(b"abcdefghijklmnop");
        let excerpt = log.finish();
        let mut out = Vec::new();
        excerpt.write_to(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "abcd\n[... 8 of 16 bytes left out ...]\nmnop");
    }

    #[test]
    fn a_gap_never_splits_a_character() {
        for max in 0..30 {
            let mut log = HeadTail::new(max);
            log.push("aäöü€𝄞 and äöü€𝄞z".as_bytes());
            let mut excerpt = log.finish();
            excerpt.cut_at_characters();
            assert!(std::str::from_utf8(&excerpt.head).is_ok() && std::str::from_utf8(&excerpt.tail).is_ok());
            assert!(excerpt.head.len() + excerpt.tail.len() + 6 >= max.min(excerpt.length as usize));
        }
    }

    proptest! {
        /// After any number of cuts it fits and consists of the log's own ends.
        #[test]
        fn an_excerpt_can_be_shortened_again(whole in prop::collection::vec(0u8..128, 0..200), first in 0usize..200, then in 0usize..200) {
            let mut log = HeadTail::new(first);
            log.push(&whole);
            let mut excerpt = log.finish();
            excerpt.shrink(then);
            prop_assert!(excerpt.bytes() <= first.min(then) || excerpt.bytes() == whole.len());
            prop_assert!(excerpt.bytes() == whole.len().min(first).min(then));
            prop_assert!(whole.starts_with(&excerpt.head) && whole.ends_with(&excerpt.tail));
            prop_assert_eq!(excerpt.left_out() as usize, whole.len() - excerpt.bytes());
        }
    }

    proptest! {
        /// For any split into pieces, short logs are kept in full, and long ones keep exactly their ends.
        #[test]
        fn an_excerpt_keeps_both_ends_of_a_long_log(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12), max in 0usize..64,
        ) {
            let whole: Vec<u8> = pieces.concat();
            let mut log = HeadTail::new(max);
            pieces.iter().for_each(|piece| log.push(piece));
            let excerpt = log.finish();
            prop_assert_eq!(excerpt.length, whole.len() as u64);
            prop_assert_eq!(excerpt.sha256.clone(), format!("{:x}", Sha256::digest(&whole)));
            if whole.len() <= max {
                prop_assert_eq!(&excerpt.head, &whole);
                prop_assert!(excerpt.tail.is_empty());
            } else {
                prop_assert_eq!(&excerpt.head[..], &whole[..max / 2]);
                prop_assert_eq!(&excerpt.tail[..], &whole[whole.len() - (max - max / 2)..]);
            }
        }
    }
}
