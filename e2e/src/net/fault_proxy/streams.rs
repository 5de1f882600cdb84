//! Watches that stand still, or keep something back.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use parking_lot::{Mutex, MutexGuard};

use crate::net::fault_proxy::forward::Body;

/// The open watches.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Mutex<Vec<(String, Weak<AtomicBool>)>>,
    swallows: Arc<Mutex<Vec<Swallow>>>,
}

#[derive(Debug)]
struct Swallow {
    words: Vec<String>,
    count: Swallowed,
}

/// How many pieces of watches were kept back.
#[derive(Clone, Debug)]
pub struct Swallowed(Arc<AtomicUsize>);

impl Swallowed {
    /// So many.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Streams {
    pub(super) fn stall(&self, path: &str) -> usize {
        let open = lock(&self.open);
        let those = open.iter().filter(|(of, _)| of == path).filter_map(|(_, stalled)| stalled.upgrade());
        those.map(|stalled| stalled.store(true, Ordering::SeqCst)).count()
    }

    pub(super) fn swallow(&self, words: &[&str]) -> Swallowed {
        let count = Swallowed(Arc::default());
        let words = words.iter().map(|&word| word.to_owned()).collect();
        lock(&self.swallows).push(Swallow { words, count: count.clone() });
        count
    }

    /// The same stream, under our hand.
    pub(super) fn guard(&self, path: &str, body: Body) -> Body {
        let stalled = Arc::new(AtomicBool::new(false));
        let mut open = lock(&self.open);
        open.retain(|(_, stalled)| stalled.strong_count() > 0);
        open.push((path.to_owned(), Arc::downgrade(&stalled)));
        drop(open);
        Guarded { body, stalled, swallows: self.swallows.clone() }.boxed()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock()
}

struct Guarded {
    body: Body,
    stalled: Arc<AtomicBool>,
    swallows: Arc<Mutex<Vec<Swallow>>>,
}

impl Guarded {
    /// The apiserver flushes each event by itself, so that a piece holds whole ones.
    fn is_swallowed(&self, piece: &Bytes) -> bool {
        let text = String::from_utf8_lossy(piece);
        let swallows = lock(&self.swallows);
        let swallow = swallows.iter().find(|swallow| swallow.words.iter().all(|word| text.contains(word)));
        swallow.is_some_and(|swallow| {
            swallow.count.0.fetch_add(1, Ordering::SeqCst);
            true
        })
    }
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let polled = Pin::new(&mut self.body).poll_frame(context);
            if self.stalled.load(Ordering::SeqCst) {
                // Whoever reads it gives up, and this is dropped.
                return Poll::Pending;
            }
            let Poll::Ready(Some(Ok(frame))) = &polled else { return polled };
            if !frame.data_ref().is_some_and(|piece| self.is_swallowed(piece)) {
                return polled;
            }
        }
    }
}
