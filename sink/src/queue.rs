//! A work queue of keys: a key that comes again while it waits is one, while it is worked on it waits until that is
//! done (so that no Job is worked on twice at a time), and after a failure it comes back later.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause after many.
const LONGEST: Duration = Duration::from_secs(60);

/// The queue; clones are the same one.
#[derive(Debug)]
pub struct Queue<K>(Arc<Shared<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    later: BTreeMap<(Instant, u64), K>,
    failures: HashMap<K, u32>,
    ticket: u64,
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            failures: HashMap::new(),
            ticket: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }))
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for work on `key`.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if state.waiting.insert(key.clone()) && !state.working.contains(&key) {
            state.ready.push_back(key);
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Asks for work on `key` after a while.
    pub fn add_after(&self, key: K, pause: Duration) {
        let mut state = self.lock();
        state.ticket += 1;
        let at = (Instant::now() + pause, state.ticket);
        state.later.insert(at, key);
        drop(state);
        self.0.wake.notify_one();
    }

    /// The next key to work on; it stays «in work» until [`Self::done`].
    pub async fn next(&self) -> K {
        loop {
            let pause = {
                let mut state = self.lock();
                let now = Instant::now();
                while let Some(entry) = state.later.first_entry()
                    && entry.key().0 <= now
                {
                    let key = entry.remove();
                    if state.waiting.insert(key.clone()) && !state.working.contains(&key) {
                        state.ready.push_back(key);
                    }
                }
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.working.insert(key.clone());
                    return key;
                }
                state.later.first_key_value().map(|((at, _), _)| *at)
            };
            let woken = self.0.wake.notified();
            match pause {
                Some(at) => {
                    tokio::select! { () = woken => {}, () = tokio::time::sleep_until(at) => {} }
                }
                None => woken.await,
            }
        }
    }

    /// Ends the work on `key`. A failure brings it back after a pause that doubles (with jitter from `spread`, 0 to 1).
    pub fn done(&self, key: K, well: bool, spread: f64) {
        let mut state = self.lock();
        state.working.remove(&key);
        if state.waiting.contains(&key) {
            state.ready.push_back(key.clone());
        }
        if well {
            state.failures.remove(&key);
        } else {
            let failures = state.failures.entry(key.clone()).or_default();
            let pause = FIRST.saturating_mul(1 << (*failures).min(12)).min(LONGEST);
            *failures += 1;
            state.ticket += 1;
            let at = (Instant::now() + pause.mul_f64(0.5 + spread.clamp(0.0, 1.0) / 2.0), state.ticket);
            state.later.insert(at, key);
        }
        drop(state);
        self.0.wake.notify_one();
    }

    /// Forgets all that is known of `key` but for work in progress.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.ready.len() + state.later.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything, for a leader that steps down: its work in progress has been dropped.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.ready.clear();
        state.waiting.clear();
        state.working.clear();
        state.later.clear();
        state.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_in_work_is_not_given_twice() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        queue.done("a", true, 0.0);
        assert_eq!(queue.next().await, "a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_key_comes_back_later_and_later() {
        let queue = Queue::default();
        queue.add("a");
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let key = queue.next().await;
            queue.done(key, false, 1.0);
            let from = Instant::now();
            let key = queue.next().await;
            pauses.push(from.elapsed().as_millis());
            queue.done(key, false, 1.0);
            queue.next().await;
            queue.done("a", false, 1.0);
        }
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_does_not_hold_up_others() {
        let queue = Queue::default();
        queue.add_after("late", Duration::from_secs(5));
        queue.add("now");
        assert_eq!(queue.next().await, "now");
        assert_eq!(queue.next().await, "late");
    }
}
