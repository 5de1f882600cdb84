//! Watches that stall or drop events.

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
    filters: Arc<Mutex<Vec<DropFilter>>>,
}

#[derive(Debug)]
struct DropFilter {
    words: Vec<String>,
    count: DroppedEvents,
}

/// How many watch events were dropped.
#[derive(Clone, Debug)]
pub struct DroppedEvents(Arc<AtomicUsize>);

impl DroppedEvents {
    /// The number of events.
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

    pub(super) fn drop_events(&self, words: &[&str]) -> DroppedEvents {
        let count = DroppedEvents(Arc::default());
        let words = words.iter().map(|&word| word.to_owned()).collect();
        lock(&self.filters).push(DropFilter { words, count: count.clone() });
        count
    }

    /// The same stream, which can be stalled and filtered.
    pub(super) fn filter(&self, path: &str, body: Body) -> Body {
        let stalled = Arc::new(AtomicBool::new(false));
        let mut open = lock(&self.open);
        open.retain(|(_, stalled)| stalled.strong_count() > 0);
        open.push((path.to_owned(), Arc::downgrade(&stalled)));
        drop(open);
        FilteredBody { body, stalled, filters: self.filters.clone() }.boxed()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock()
}

struct FilteredBody {
    body: Body,
    stalled: Arc<AtomicBool>,
    filters: Arc<Mutex<Vec<DropFilter>>>,
}

impl FilteredBody {
    /// The apiserver flushes each event separately, so that a frame contains complete events.
    fn is_dropped(&self, piece: &Bytes) -> bool {
        let text = String::from_utf8_lossy(piece);
        let filters = lock(&self.filters);
        let filter = filters.iter().find(|filter| filter.words.iter().all(|word| text.contains(word)));
        filter.is_some_and(|filter| {
            filter.count.0.fetch_add(1, Ordering::SeqCst);
            true
        })
    }
}

impl hyper::body::Body for FilteredBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let polled = Pin::new(&mut self.body).poll_frame(context);
            if self.stalled.load(Ordering::SeqCst) {
                // Dropped when the reader gives up.
                return Poll::Pending;
            }
            let Poll::Ready(Some(Ok(frame))) = &polled else { return polled };
            if !frame.data_ref().is_some_and(|piece| self.is_dropped(piece)) {
                return polled;
            }
        }
    }
}
