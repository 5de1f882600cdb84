//! A work queue of keys: a key that comes again while it waits is one, while it is worked on it waits until that is
//! done (so that no Job is worked on twice at a time), and after a failure it comes back later.
//!
//! Keys stand in lanes, which are served in turns: who has many waiting does not come before who has one. A lane in
//! trouble ([`Queue::struck`]) is asked by few, one after the other, until one gets through ([`Queue::cleared`]): what
//! is refused or stands still there takes neither time nor slots from the others.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use job_handler_shared::process::jitter::jitter;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

/// First pause after a failure.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause after many.
const LONGEST: Duration = Duration::from_secs(60);
/// A lane that was struck so often in a row is in trouble …
const ENOUGH: u32 = 8;
/// … then so many of its keys are worked on at a time …
const NARROW: usize = 2;
/// … and it pauses after each further one that is struck: at first so long, doubling …
const LANE_FIRST: Duration = Duration::from_millis(100);
/// … up to this. It bounds what a lane in trouble costs, and how long it takes to see that the trouble is over.
const LANE_LONGEST: Duration = Duration::from_millis(800);
/// Lanes in trouble that nobody waits in are forgotten beyond this many.
const REMEMBERED: usize = 1_000;

/// Whose keys have their turns together.
pub type Lane = Arc<str>;

/// The queue; clones are the same one.
pub struct Queue<K>(Arc<Shared<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("width", &self.0.width).finish_non_exhaustive()
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    lane_of: Box<dyn Fn(&K) -> Lane + Send + Sync>,
    /// Keys of one lane that are worked on at a time.
    width: usize,
}

struct State<K> {
    lanes: HashMap<Lane, Track<K>>,
    /// Lanes with something ready, whose turn comes.
    turns: VecDeque<Lane>,
    /// Lanes that pause.
    pausing: BTreeMap<(Instant, u64), Lane>,
    waiting: HashSet<K>,
    working: HashMap<K, Lane>,
    later: BTreeMap<(Instant, u64), K>,
    failures: HashMap<K, u32>,
    ticket: u64,
}

/// One lane.
struct Track<K> {
    ready: VecDeque<K>,
    working: usize,
    strikes: u32,
    until: Option<Instant>,
    /// It is in the line of those whose turn comes.
    in_turn: bool,
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            pausing: BTreeMap::new(),
            waiting: HashSet::new(),
            working: HashMap::new(),
            later: BTreeMap::new(),
            failures: HashMap::new(),
            ticket: 0,
        }
    }
}

impl<K> Default for Track<K> {
    fn default() -> Self {
        Self { ready: VecDeque::new(), working: 0, strikes: 0, until: None, in_turn: false }
    }
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    /// One lane for all.
    fn default() -> Self {
        let one: Lane = "".into();
        Self::in_lanes(usize::MAX, move |_| one.clone())
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// In lanes, of each of which so many keys are worked on at a time.
    pub fn in_lanes(width: usize, lane_of: impl Fn(&K) -> Lane + Send + Sync + 'static) -> Self {
        let lane_of = Box::new(lane_of);
        Self(Arc::new(Shared { state: Mutex::default(), wake: Notify::new(), lane_of, width }))
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock()
    }

    /// Asks for work on `key`.
    pub fn add(&self, key: K) {
        let lane = (self.0.lane_of)(&key);
        let mut state = self.lock();
        if state.waiting.insert(key.clone()) && !state.working.contains_key(&key) {
            state.ready(lane, key, self.0.width);
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Asks for work on `key` after a while.
    pub fn add_after(&self, key: K, pause: Duration) {
        let mut state = self.lock();
        let at = (Instant::now() + pause, state.ticket());
        state.later.insert(at, key);
        drop(state);
        self.0.wake.notify_one();
    }

    /// The next key to work on; it stays «in work» until [`Self::done`].
    pub async fn next(&self) -> K {
        loop {
            let woken = self.0.wake.notified();
            match self.pop() {
                Ok(key) => return key,
                Err(Some(at)) => {
                    tokio::select! { () = woken => {}, () = tokio::time::sleep_until(at) => {} }
                }
                Err(None) => woken.await,
            }
        }
    }

    /// The next key, or when there may be one.
    fn pop(&self) -> Result<K, Option<Instant>> {
        let mut state = self.lock();
        let now = Instant::now();
        while let Some(entry) = state.later.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            if state.waiting.insert(key.clone()) && !state.working.contains_key(&key) {
                let lane = (self.0.lane_of)(&key);
                state.ready(lane, key, self.0.width);
            }
        }
        while let Some(entry) = state.pausing.first_entry()
            && entry.key().0 <= now
        {
            let lane = entry.remove();
            state.offer(&lane, self.0.width, now);
        }
        if let Some(key) = state.take(self.0.width, now) {
            return Ok(key);
        }
        let keys = state.later.first_key_value().map(|((at, _), _)| *at);
        let lanes = state.pausing.first_key_value().map(|((at, _), _)| *at);
        Err(keys.into_iter().chain(lanes).min())
    }

    /// Ends the work on `key`. A failure brings it back after a pause that doubles (with jitter from `spread`, 0 to 1).
    pub fn done(&self, key: K, well: bool) {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(lane) = state.working.remove(&key) {
            if let Some(track) = state.lanes.get_mut(&lane) {
                track.working = track.working.saturating_sub(1);
            }
            if state.waiting.contains(&key) {
                state.ready(lane, key.clone(), self.0.width);
            } else {
                state.offer(&lane, self.0.width, now);
            }
        }
        if well {
            state.failures.remove(&key);
        } else {
            let failures = state.failures.entry(key.clone()).or_default();
            let pause = FIRST.saturating_mul(1 << (*failures).min(12)).min(LONGEST);
            *failures += 1;
            let at = (now + jitter(pause), state.ticket());
            state.later.insert(at, key);
        }
        drop(state);
        self.0.wake.notify_one();
    }

    /// Something is wrong with more than this key, which is worked on: its lane may be in trouble.
    pub fn struck(&self, key: &K) {
        let mut state = self.lock();
        let Some(lane) = state.working.get(key).cloned() else { return };
        let ticket = state.ticket();
        let Some(track) = state.lanes.get_mut(&lane) else { return };
        track.strikes = track.strikes.saturating_add(1);
        if let Some(over) = track.strikes.checked_sub(ENOUGH) {
            let until = Instant::now() + LANE_FIRST.saturating_mul(1 << over.min(12)).min(LANE_LONGEST);
            track.until = Some(until);
            state.pausing.insert((until, ticket), lane);
        }
    }

    /// Nothing is wrong with the lane of this key, which is worked on.
    pub fn cleared(&self, key: &K) {
        let mut state = self.lock();
        let Some(lane) = state.working.get(key).cloned() else { return };
        if let Some(track) = state.lanes.get_mut(&lane) {
            (track.strikes, track.until) = (0, None);
        }
        state.offer(&lane, self.0.width, Instant::now());
        drop(state);
        self.0.wake.notify_one();
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.lanes.values().map(|track| track.ready.len()).sum::<usize>() + state.later.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything, for a leader that steps down: its work in progress has been dropped.
    pub fn clear(&self) {
        *self.lock() = State::default();
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn ready(&mut self, lane: Lane, key: K, width: usize) {
        self.lanes.entry(lane.clone()).or_default().ready.push_back(key);
        self.offer(&lane, width, Instant::now());
    }

    /// Lets a lane have its turn if it has something to do, and may; forgets it if there is nothing to remember.
    fn offer(&mut self, lane: &Lane, width: usize, now: Instant) {
        let many = self.lanes.len() > REMEMBERED;
        let Some(track) = self.lanes.get_mut(lane) else { return };
        if track.in_turn {
            return;
        }
        if track.may(width, now) {
            track.in_turn = true;
            self.turns.push_back(lane.clone());
        } else if track.ready.is_empty() && track.working == 0 && (track.strikes < ENOUGH || many) {
            self.lanes.remove(lane);
        }
    }

    fn take(&mut self, width: usize, now: Instant) -> Option<K> {
        while let Some(lane) = self.turns.pop_front() {
            let Some(track) = self.lanes.get_mut(&lane) else { continue };
            track.in_turn = false;
            // It may have come into trouble since.
            if !track.may(width, now) {
                continue;
            }
            let Some(key) = track.ready.pop_front() else { continue };
            track.working += 1;
            self.waiting.remove(&key);
            self.working.insert(key.clone(), lane.clone());
            self.offer(&lane, width, now);
            return Some(key);
        }
        None
    }
}

impl<K> Track<K> {
    fn may(&self, width: usize, now: Instant) -> bool {
        let width = if self.strikes < ENOUGH { width } else { NARROW };
        !self.ready.is_empty() && self.working < width && self.until.is_none_or(|until| until <= now)
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
        queue.done("a", true);
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
    async fn one_that_waits_does_not_hold_up_others() {
        let queue = Queue::default();
        queue.add_after("late", Duration::from_secs(5));
        queue.add("now");
        assert_eq!(queue.next().await, "now");
        assert_eq!(queue.next().await, "late");
    }

    fn by_first_letter(width: usize) -> Queue<&'static str> {
        Queue::in_lanes(width, |key: &&str| key[..1].into())
    }

    /// What can be had now.
    fn now(queue: &Queue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop().ok()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_have_their_turns() {
        let queue = by_first_letter(9);
        ["a1", "a2", "a3", "b1", "c1", "c2"].into_iter().for_each(|key| queue.add(key));
        assert_eq!(now(&queue), ["a1", "b1", "c1", "a2", "c2", "a3"]);
        let queue = by_first_letter(2);
        ["a1", "a2", "a3", "b1"].into_iter().for_each(|key| queue.add(key));
        assert_eq!(now(&queue), ["a1", "b1", "a2"], "a lane is no wider than that");
        queue.done("a2", true);
        assert_eq!(queue.next().await, "a3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_in_trouble_is_asked_by_few_until_one_gets_through() {
        let queue = by_first_letter(100);
        let keys: Vec<&'static str> =
            (0..40).map(|n| &*Box::leak(format!("a{n}").into_boxed_str())).collect();
        keys.iter().for_each(|key| queue.add(key));
        for _ in 0..ENOUGH {
            let key = queue.next().await;
            queue.struck(&key);
            queue.done(key, true);
        }
        queue.add("b");
        assert_eq!(now(&queue), ["b"], "it pauses, the others do not");
        let since = Instant::now();
        for _ in 0..10 {
            let key = queue.next().await;
            queue.struck(&key);
            queue.done(key, true);
        }
        assert!(since.elapsed() > 7 * LANE_LONGEST, "{:?}", since.elapsed());
        let key = queue.next().await;
        assert_eq!(now(&queue).len(), NARROW - 1, "no more of it at a time");
        queue.cleared(&key);
        assert_eq!(now(&queue).len(), 40 - 8 - 10 - NARROW, "all is well again");
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_that_nobody_is_in_are_forgotten() {
        let queue = by_first_letter(1);
        for key in ["a1", "a2", "b1"] {
            queue.add(key);
        }
        for _ in 0..3 {
            let key = queue.next().await;
            queue.done(key, true);
        }
        assert!(queue.lock().lanes.is_empty());
    }
}
