//! A work queue of keys, like client-go's `workqueue`: a key that is added twice waits once, a key that is added while it
//! is processed waits until that is done (so no key is processed twice at a time), and a failed key is retried later.
//!
//! Keys wait in lanes, which are served in turn: one lane with many keys does not delay the others. A failing lane
//! ([`Queue::record_lane_failure`]) is throttled to a few keys at a time until one succeeds
//! ([`Queue::record_lane_success`]), so that calls that fail or hang there do not use up the workers of other lanes.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use job_handler_shared::process::jitter::{exponential, jitter};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::runtime::queue_state::{LaneName, QueueState};

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after many failures.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The queue; clones share it.
pub struct Queue<K>(Arc<SharedQueue<K>>);

struct SharedQueue<K> {
    state: Mutex<QueueState<K>>,
    changed: Notify,
    lane_of: Box<dyn Fn(&K) -> LaneName + Send + Sync>,
    /// Keys of one lane that are processed concurrently.
    concurrency: usize,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("concurrency", &self.0.concurrency).finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    /// One lane for all keys.
    fn default() -> Self {
        let one: LaneName = "".into();
        Self::with_lanes(usize::MAX, move |_| one.clone())
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// A queue that processes at most `concurrency` keys of each lane concurrently.
    pub(crate) fn with_lanes(
        concurrency: usize,
        lane_of: impl Fn(&K) -> LaneName + Send + Sync + 'static,
    ) -> Self {
        let lane_of = Box::new(lane_of);
        Self(Arc::new(SharedQueue { state: Mutex::default(), changed: Notify::new(), lane_of, concurrency }))
    }

    /// Adds a key, unless it waits already.
    pub fn add(&self, key: K) {
        let lane = (self.0.lane_of)(&key);
        if self.0.state.lock().add(lane, key, self.0.concurrency) {
            self.0.changed.notify_one();
        }
    }

    /// Adds a key after a pause.
    pub(crate) fn add_after(&self, key: K, pause: Duration) {
        self.0.state.lock().add_at(Instant::now() + pause, key);
        self.0.changed.notify_one();
    }

    /// Waits for the next key; it is in progress until [`Self::done`].
    pub(crate) async fn next(&self) -> K {
        loop {
            let changed = self.0.changed.notified();
            match self.pop() {
                Ok(key) => return key,
                Err(Some(at)) => {
                    tokio::select! { () = changed => {}, () = tokio::time::sleep_until(at) => {} }
                }
                Err(None) => changed.await,
            }
        }
    }

    fn pop(&self) -> Result<K, Option<Instant>> {
        self.0.state.lock().pop(&self.0.lane_of, self.0.concurrency, Instant::now())
    }

    /// Ends the processing of `key`. Retries a failed key after a pause that doubles, with jitter.
    pub(crate) fn done(&self, key: K, succeeded: bool) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        state.finish(&key, self.0.concurrency, now);
        if succeeded {
            state.reset_failures(&key);
        } else {
            let failures = state.add_failure(&key);
            let pause = exponential(FIRST_PAUSE, MAX_PAUSE, failures);
            state.add_at(now + jitter(pause), key);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Counts a failure against the lane of `key`, which is in progress: other keys of the lane may fail too.
    pub(crate) fn record_lane_failure(&self, key: &K) {
        self.0.state.lock().add_lane_failure(key, Instant::now());
    }

    /// Ends the throttling of the lane of `key`, which is in progress.
    pub(crate) fn record_lane_success(&self, key: &K) {
        if self.0.state.lock().reset_lane(key, self.0.concurrency, Instant::now()) {
            self.0.changed.notify_one();
        }
    }

    /// Number of keys that wait.
    pub(crate) fn len(&self) -> usize {
        self.0.state.lock().len()
    }

    /// Removes everything. Used when leadership begins: the work in progress of an earlier term has been dropped.
    pub(crate) fn clear(&self) {
        *self.0.state.lock() = QueueState::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::queue_state::{MAX_LANE_FAILURES, MAX_LANE_PAUSE, THROTTLED_CONCURRENCY};

    #[tokio::test(start_paused = true)]
    async fn a_key_in_progress_is_not_processed_twice_at_a_time() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        queue.done("a", true);
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_after_a_failure_grows() {
        let queue = Queue::default();
        queue.add("a");
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let key = queue.next().await;
            queue.done(key, false);
            let from = Instant::now();
            let key = queue.next().await;
            pauses.push(from.elapsed().as_millis());
            queue.done(key, false);
            queue.next().await;
            queue.done("a", false);
        }
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_does_not_block_others() {
        let queue = Queue::default();
        queue.add_after("late", Duration::from_secs(5));
        queue.add("now");
        assert_eq!(queue.next().await, "now");
        assert_eq!(queue.next().await, "late");
    }

    fn by_first_letter(concurrency: usize) -> Queue<&'static str> {
        Queue::with_lanes(concurrency, |key: &&str| key[..1].into())
    }

    /// All keys that are ready now.
    fn ready(queue: &Queue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop().ok()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_are_served_in_turn() {
        let queue = by_first_letter(9);
        ["a1", "a2", "a3", "b1", "c1", "c2"].into_iter().for_each(|key| queue.add(key));
        assert_eq!(ready(&queue), ["a1", "b1", "c1", "a2", "c2", "a3"]);
        let queue = by_first_letter(2);
        ["a1", "a2", "a3", "b1"].into_iter().for_each(|key| queue.add(key));
        assert_eq!(ready(&queue), ["a1", "b1", "a2"], "at most two keys of a lane at a time");
        queue.done("a2", true);
        assert_eq!(queue.next().await, "a3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_lane_is_throttled_until_a_key_succeeds() {
        let queue = by_first_letter(100);
        let keys: Vec<&'static str> =
            (0..40).map(|n| &*Box::leak(format!("a{n}").into_boxed_str())).collect();
        keys.iter().for_each(|key| queue.add(key));
        for _ in 0..MAX_LANE_FAILURES {
            let key = queue.next().await;
            queue.record_lane_failure(&key);
            queue.done(key, true);
        }
        queue.add("b");
        assert_eq!(ready(&queue), ["b"], "only the failing lane pauses");
        let since = Instant::now();
        for _ in 0..10 {
            let key = queue.next().await;
            queue.record_lane_failure(&key);
            queue.done(key, true);
        }
        assert!(since.elapsed() > 7 * MAX_LANE_PAUSE, "{:?}", since.elapsed());
        let key = queue.next().await;
        assert_eq!(ready(&queue).len(), THROTTLED_CONCURRENCY - 1, "the lane is throttled");
        queue.record_lane_success(&key);
        assert_eq!(
            ready(&queue).len(),
            40 - 8 - 10 - THROTTLED_CONCURRENCY,
            "the lane is no longer throttled"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn empty_lanes_are_removed() {
        let queue = by_first_letter(1);
        for key in ["a1", "a2", "b1"] {
            queue.add(key);
        }
        for _ in 0..3 {
            let key = queue.next().await;
            queue.done(key, true);
        }
        assert!(queue.0.state.lock().lanes.is_empty());
    }
}
