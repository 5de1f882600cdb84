//! Whether a node's kubelet answers calls for logs.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::harvest::tuning::{
    SLOW_CALLS, SLOW_FOR, UNRESPONSIVE_AFTER, UNRESPONSIVE_CALLS, UNRESPONSIVE_FOR,
};

#[derive(Debug, Default)]
pub(crate) struct NodeHealth {
    silence: Mutex<Silence>,
    /// By namespace: logs in a row that were not answered at once, and the last time.
    slow: Mutex<HashMap<String, (u32, Instant)>>,
}

#[derive(Debug, Default)]
struct Silence {
    calls: u32,
    /// The first and the last call without an answer.
    span: Option<(Instant, Instant)>,
}

impl NodeHealth {
    /// Records that a log of this namespace was not answered at once.
    pub(crate) fn record_slow(&self, namespace: &str) {
        let mut slow = self.slow.lock();
        slow.retain(|_, (_, last)| last.elapsed() < SLOW_FOR);
        let calls = slow.entry(namespace.to_owned()).or_insert((0, Instant::now()));
        *calls = (calls.0.saturating_add(1), Instant::now());
    }

    /// Whether logs of this namespace are read in the slow lane from the start.
    pub(crate) fn is_slow(&self, namespace: &str) -> bool {
        let slow = self.slow.lock();
        slow.get(namespace).is_some_and(|(calls, last)| *calls >= SLOW_CALLS && last.elapsed() < SLOW_FOR)
    }

    /// Records that a call for a log of this namespace was answered.
    pub(crate) fn record_answer(&self, namespace: &str) {
        self.slow.lock().remove(namespace);
        *self.silence.lock() = Silence::default();
    }

    /// Records that a call in the slow lane timed out.
    pub(crate) fn record_timeout(&self) {
        let mut silence = self.silence.lock();
        let now = Instant::now();
        // An old timeout says nothing about the node's present state.
        let first =
            silence.span.filter(|(_, last)| last.elapsed() < UNRESPONSIVE_FOR).map(|(first, _)| first);
        silence.calls = if first.is_some() { silence.calls.saturating_add(1) } else { 1 };
        silence.span = Some((first.unwrap_or(now), now));
    }

    pub(crate) fn is_unresponsive(&self) -> bool {
        let silence = self.silence.lock();
        silence.calls >= UNRESPONSIVE_CALLS
            && silence.span.is_some_and(|(first, last)| {
                first.elapsed() >= UNRESPONSIVE_AFTER && last.elapsed() < UNRESPONSIVE_FOR
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_slow_after_two_slow_answers_in_a_row() {
        let node = NodeHealth::default();
        node.record_slow("a");
        assert!(!node.is_slow("a"), "once is not enough");
        node.record_slow("a");
        assert!(node.is_slow("a") && !node.is_slow("b"));
        tokio::time::advance(SLOW_FOR).await;
        assert!(!node.is_slow("a"), "the regular lane is tried again after a while");
        node.record_slow("a");
        node.record_slow("a");
        node.record_answer("a");
        assert!(!node.is_slow("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_unresponsive_after_a_long_silence_until_its_next_answer() {
        let node = NodeHealth::default();
        for _ in 0..3 {
            node.record_timeout();
        }
        assert!(!node.is_unresponsive(), "a moment is not enough");
        tokio::time::advance(UNRESPONSIVE_AFTER).await;
        node.record_timeout();
        assert!(node.is_unresponsive());
        node.record_answer("a");
        assert!(!node.is_unresponsive());
        for _ in 0..9 {
            node.record_timeout();
        }
        tokio::time::advance(2 * UNRESPONSIVE_FOR).await;
        assert!(!node.is_unresponsive(), "the silence is too old");
        node.record_timeout();
        assert!(!node.is_unresponsive(), "old timeouts no longer count");
    }
}
