//! When an attempt whose Job never came may be removed, while webhooks of others come and go: a configuration can appear or
//! vanish at any time, the watch of the replica lags, and a request goes on under the configuration that it began with.
//!
//! Time passes in steps of 10 s. The bound is the program's own, by `other_webhooks`.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use job_handler_webhook::ledger::{expiry::STORED_WITHIN, other_webhooks::KnownTimeouts};
use stateright::{Model, Property};

use crate::{EXACT, FULL, QUIET};

/// The name and the timeout of the other configuration.
const OTHER: (&str, Duration) = ("other", Duration::from_secs(30));
/// Of a create: what passes between admission and the write.
const PAUSE: u64 = 20;
const STEP: u64 = 10;
/// The replica has watched for longer than it remembers.
const FIRST: u64 = 70;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn at(seconds: u64) -> Instant {
    *ORIGIN + Duration::from_secs(seconds)
}

/// The bounds, and which rules are removed.
#[derive(Clone, Debug)]
pub struct ExpiryModel {
    pub last: u64,
    /// How often the other configuration appears or vanishes.
    pub changes: usize,
    /// Only what is configured when the attempt is removed counts.
    pub without_memory: bool,
    /// A watch may lag for longer than an apiserver may pause.
    pub lagging_watch: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpiryState {
    now: u64,
    configured: bool,
    changes: usize,
    /// Changes that the watch has not delivered, and when they were made.
    undelivered: Vec<(bool, u64)>,
    known: KnownTimeouts,
    requests: [HeldCreate; 2],
    /// When the replica saw the attempt of the first request.
    attempt: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeldCreate {
    Waiting,
    /// Admitted; it ends at this time at the latest.
    Admitted(u64),
    Stored,
    Denied,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpiryStep {
    Wait,
    Reconfigure,
    Deliver,
    Grant(usize),
    Store(usize),
    Deny(usize),
    Expire,
}

impl ExpiryState {
    fn stored(&self) -> usize {
        self.requests.iter().filter(|stage| **stage == HeldCreate::Stored).count()
    }
}

impl ExpiryModel {
    /// Whether the attempt of the first request may be removed. The Job is read first.
    fn may_expire(&self, state: &ExpiryState) -> bool {
        let Some(seen) = state.attempt else { return false };
        let (since, now) = (at(seen), at(state.now));
        let others = match (self.without_memory, state.configured) {
            (true, true) => OTHER.1,
            (true, false) => Duration::ZERO,
            (false, _) => state.known.longest_wait(now),
        };
        let runs_out = now.duration_since(since) > STORED_WITHIN + others;
        runs_out && state.requests[0] != HeldCreate::Stored
    }
}

impl Model for ExpiryModel {
    type State = ExpiryState;
    type Action = ExpiryStep;

    fn init_states(&self) -> Vec<ExpiryState> {
        let mut known = KnownTimeouts::default();
        known.replace(Vec::new(), at(0));
        vec![ExpiryState {
            now: FIRST,
            configured: false,
            changes: self.changes,
            undelivered: Vec::new(),
            known,
            requests: [HeldCreate::Waiting; 2],
            attempt: None,
        }]
    }

    fn actions(&self, state: &ExpiryState, steps: &mut Vec<ExpiryStep>) {
        let is_over = |stage: &HeldCreate| matches!(stage, HeldCreate::Admitted(end) if *end <= state.now);
        let lags = state.undelivered.iter().any(|(_, at)| state.now + STEP > at + PAUSE);
        if state.now < self.last && !state.requests.iter().any(is_over) && (!lags || self.lagging_watch) {
            steps.push(ExpiryStep::Wait);
        }
        if state.changes > 0 {
            steps.push(ExpiryStep::Reconfigure);
        }
        steps.extend((!state.undelivered.is_empty()).then_some(ExpiryStep::Deliver));
        if state.requests[0] == HeldCreate::Waiting {
            steps.push(ExpiryStep::Grant(0));
        }
        let is_free = state.attempt.is_none() && state.requests[0] != HeldCreate::Stored;
        if state.requests[0] != HeldCreate::Waiting && state.requests[1] == HeldCreate::Waiting && is_free {
            steps.push(ExpiryStep::Grant(1));
        }
        for (n, stage) in state.requests.iter().enumerate() {
            if matches!(stage, HeldCreate::Admitted(_)) {
                steps.extend([ExpiryStep::Store(n), ExpiryStep::Deny(n)]);
            }
        }
        if self.may_expire(state) {
            steps.push(ExpiryStep::Expire);
        }
    }

    fn next_state(&self, before: &ExpiryState, step: ExpiryStep) -> Option<ExpiryState> {
        let mut state = before.clone();
        let now = at(state.now);
        match step {
            ExpiryStep::Wait => state.now += STEP,
            ExpiryStep::Reconfigure => {
                state.changes -= 1;
                state.configured = !state.configured;
                state.undelivered.push((state.configured, state.now));
            }
            ExpiryStep::Deliver => {
                let (configured, _) = state.undelivered.remove(0);
                state.known.set(OTHER.0, configured.then_some(OTHER.1), now);
            }
            ExpiryStep::Grant(n) => {
                let others = if state.configured { OTHER.1.as_secs() } else { 0 };
                state.requests[n] = HeldCreate::Admitted(state.now + others + PAUSE);
                if n == 0 {
                    state.attempt = Some(state.now);
                }
            }
            ExpiryStep::Store(n) => state.requests[n] = HeldCreate::Stored,
            ExpiryStep::Deny(n) => state.requests[n] = HeldCreate::Denied,
            ExpiryStep::Expire => state.attempt = None,
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(EXACT, |_: &Self, state: &ExpiryState| state.stored() <= 1),
            // After the longest bound an attempt that stored nothing can be removed, whatever was configured.
            Property::always(QUIET, |model: &Self, state: &ExpiryState| {
                let denied = state.requests[0] == HeldCreate::Denied;
                let is_old = state.attempt.is_some_and(|seen| state.now > seen + 60);
                !denied || !is_old || model.may_expire(state)
            }),
            Property::sometimes(FULL, |_: &Self, state: &ExpiryState| {
                state.stored() == 1 && state.requests[0] == HeldCreate::Denied
            }),
        ]
    }
}
