//! A webhook replica as its Lease describes it.

use std::time::Instant;

use job_handler_shared::policy::presence::Presence;

/// A webhook replica as its Lease describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Replica {
    /// The Lease's renewal time, compared as text only.
    pub(crate) renewed: String,
    /// When that text last changed, by the local clock.
    pub(crate) seen: Instant,
    /// Seconds until the Lease expires without renewal.
    pub(crate) duration: u64,
    /// The policies that it enforces, and those that it cannot enforce yet.
    pub(crate) policies: Presence,
}

impl Replica {
    /// Whether it has renewed in time.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen).as_secs() < self.duration
    }
}
