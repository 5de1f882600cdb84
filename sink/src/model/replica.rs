//! A webhook replica, as its Lease shows it.

use std::{collections::BTreeMap, time::Instant};

/// A webhook replica's Lease, as last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Text of the Lease's renewal time; a change of it is a sign of life.
    pub renewed: String,
    /// When that text changed last, on our own clock.
    pub seen: Instant,
    /// Seconds it lives without renewal.
    pub duration: u64,
    /// Policy uid -> generation it enforces.
    pub enforces: BTreeMap<String, i64>,
    /// Policy uid -> why it cannot decide by its limits yet.
    pub withheld: BTreeMap<String, String>,
}

impl Replica {
    /// Whether it has renewed in time.
    pub fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen).as_secs() < self.duration
    }
}
