//! The state of a work queue: keys that wait, keys in progress, and the lanes that they wait in. Pure except for the clock
//! of a retry.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use job_handler_shared::process::jitter::exponential;
use tokio::time::Instant;

/// Failures in a row after which a lane is throttled.
pub(super) const MAX_LANE_FAILURES: u32 = 8;
/// Keys of a throttled lane that are processed concurrently.
pub(super) const THROTTLED_CONCURRENCY: usize = 2;
/// Pause of a throttled lane after its first further failure; it doubles with each one.
const FIRST_LANE_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause of a throttled lane. It bounds what the lane costs, and how long it takes to notice that it works again.
pub(super) const MAX_LANE_PAUSE: Duration = Duration::from_millis(800);
/// Above this number of lanes, empty throttled lanes are removed too.
const MAX_EMPTY_LANES: usize = 1_000;

/// Keys of one lane are served in turn with those of other lanes.
pub(crate) type LaneName = Arc<str>;

pub(super) struct QueueState<K> {
    pub(super) lanes: HashMap<LaneName, LaneState<K>>,
    /// Lanes with a key to process, in the order in which they were scheduled.
    scheduled_lanes: VecDeque<LaneName>,
    /// Throttled lanes that pause, by the end of the pause.
    pausing: BTreeMap<(Instant, u64), LaneName>,
    waiting: HashSet<K>,
    in_progress: HashMap<K, LaneName>,
    /// Keys to add later, by time.
    delayed: BTreeMap<(Instant, u64), K>,
    failures: HashMap<K, u32>,
    last_id: u64,
}

pub(super) struct LaneState<K> {
    ready: VecDeque<K>,
    in_progress: usize,
    failures: u32,
    paused_until: Option<Instant>,
    /// The lane is in [`QueueState::scheduled_lanes`].
    is_scheduled: bool,
}

impl<K> Default for QueueState<K> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            scheduled_lanes: VecDeque::new(),
            pausing: BTreeMap::new(),
            waiting: HashSet::new(),
            in_progress: HashMap::new(),
            delayed: BTreeMap::new(),
            failures: HashMap::new(),
            last_id: 0,
        }
    }
}

impl<K> Default for LaneState<K> {
    fn default() -> Self {
        Self { ready: VecDeque::new(), in_progress: 0, failures: 0, paused_until: None, is_scheduled: false }
    }
}

impl<K: Clone + Eq + Hash> QueueState<K> {
    /// Adds a key unless it waits already; returns whether it is ready now. A key in progress is ready once it is done.
    pub(super) fn add(&mut self, lane: LaneName, key: K, concurrency: usize) -> bool {
        let ready = self.waiting.insert(key.clone()) && !self.in_progress.contains_key(&key);
        if ready {
            self.make_ready(lane, key, concurrency);
        }
        ready
    }

    pub(super) fn add_at(&mut self, at: Instant, key: K) {
        let id = self.next_id();
        self.delayed.insert((at, id), key);
    }

    /// Returns the next key, or the time at which there may be one.
    pub(super) fn pop(
        &mut self,
        lane_of: impl Fn(&K) -> LaneName,
        concurrency: usize,
        now: Instant,
    ) -> Result<K, Option<Instant>> {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            self.add(lane_of(&key), key, concurrency);
        }
        while let Some(entry) = self.pausing.first_entry()
            && entry.key().0 <= now
        {
            let lane = entry.remove();
            self.schedule_lane(&lane, concurrency, now);
        }
        if let Some(key) = self.pop_ready(concurrency, now) {
            return Ok(key);
        }
        let delayed = self.delayed.first_key_value().map(|((at, _), _)| *at);
        let pausing = self.pausing.first_key_value().map(|((at, _), _)| *at);
        Err(delayed.into_iter().chain(pausing).min())
    }

    /// Ends the processing of a key.
    pub(super) fn finish(&mut self, key: &K, concurrency: usize, now: Instant) {
        let Some(lane) = self.in_progress.remove(key) else { return };
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.in_progress = state.in_progress.saturating_sub(1);
        }
        if self.waiting.contains(key) {
            self.make_ready(lane, key.clone(), concurrency);
        } else {
            self.schedule_lane(&lane, concurrency, now);
        }
    }

    /// Counts a failure of a key; returns how many preceded it.
    pub(super) fn add_failure(&mut self, key: &K) -> u32 {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures += 1;
        *failures - 1
    }

    pub(super) fn reset_failures(&mut self, key: &K) {
        self.failures.remove(key);
    }

    pub(super) fn add_lane_failure(&mut self, key: &K, now: Instant) {
        let Some(lane) = self.in_progress.get(key).cloned() else { return };
        let id = self.next_id();
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        state.failures = state.failures.saturating_add(1);
        if let Some(further) = state.failures.checked_sub(MAX_LANE_FAILURES) {
            let until = now + exponential(FIRST_LANE_PAUSE, MAX_LANE_PAUSE, further);
            state.paused_until = Some(until);
            self.pausing.insert((until, id), lane);
        }
    }

    /// Ends the throttling of a key's lane; returns whether the key is in progress.
    pub(super) fn reset_lane(&mut self, key: &K, concurrency: usize, now: Instant) -> bool {
        let Some(lane) = self.in_progress.get(key).cloned() else { return false };
        if let Some(state) = self.lanes.get_mut(&lane) {
            (state.failures, state.paused_until) = (0, None);
        }
        self.schedule_lane(&lane, concurrency, now);
        true
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.ready.len()).sum::<usize>() + self.delayed.len()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn make_ready(&mut self, lane: LaneName, key: K, concurrency: usize) {
        self.lanes.entry(lane.clone()).or_default().ready.push_back(key);
        self.schedule_lane(&lane, concurrency, Instant::now());
    }

    /// Schedules a lane if it has a key that may be processed; removes it if it is empty and not throttled.
    fn schedule_lane(&mut self, lane: &LaneName, concurrency: usize, now: Instant) {
        let too_many = self.lanes.len() > MAX_EMPTY_LANES;
        let Some(state) = self.lanes.get_mut(lane) else { return };
        if state.is_scheduled {
            return;
        }
        if state.may_process(concurrency, now) {
            state.is_scheduled = true;
            self.scheduled_lanes.push_back(lane.clone());
        } else if state.ready.is_empty()
            && state.in_progress == 0
            && (state.failures < MAX_LANE_FAILURES || too_many)
        {
            self.lanes.remove(lane);
        }
    }

    fn pop_ready(&mut self, concurrency: usize, now: Instant) -> Option<K> {
        while let Some(lane) = self.scheduled_lanes.pop_front() {
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            state.is_scheduled = false;
            // It may have been throttled since it was scheduled.
            if !state.may_process(concurrency, now) {
                continue;
            }
            let Some(key) = state.ready.pop_front() else { continue };
            state.in_progress += 1;
            self.waiting.remove(&key);
            self.in_progress.insert(key.clone(), lane.clone());
            self.schedule_lane(&lane, concurrency, now);
            return Some(key);
        }
        None
    }
}

impl<K> LaneState<K> {
    fn may_process(&self, concurrency: usize, now: Instant) -> bool {
        let limit = if self.failures < MAX_LANE_FAILURES { concurrency } else { THROTTLED_CONCURRENCY };
        let paused = self.paused_until.is_some_and(|until| until > now);
        !self.ready.is_empty() && self.in_progress < limit && !paused
    }
}
