//! Cluster-wide counts of Jobs and results.

use job_handler_shared::policy::status::ResultsStatus;

/// What gauges tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Census {
    /// Jobs that take a slot.
    pub active: usize,
    /// Seconds that the oldest of them is active.
    pub oldest_active: f64,
    /// Finished Jobs whose result is asked for and not stored.
    pub unharvested: usize,
    /// Seconds since the first of them finished.
    pub oldest_unharvested: f64,
    /// The part of its harvest deadline that the one nearest to it has used.
    pub deadline_used: f64,
    /// Results that are stored, their bytes, and how many of them miss something.
    pub results: ResultsStatus,
    /// The part of `maxBytesPerNamespace` that the fullest namespace has used.
    pub budget_used: f64,
}
