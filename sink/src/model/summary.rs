//! Counts of Jobs and results over the whole cluster.

use job_handler_shared::policy::status::ResultsStatus;

/// Counts of Jobs and results over the whole cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSummary {
    /// Jobs that take a slot.
    pub active: usize,
    /// Age in seconds of the oldest active Job.
    pub oldest_active: f64,
    /// Finished Jobs whose result is wanted and not stored yet.
    pub unharvested: usize,
    /// Seconds since the first of them finished.
    pub oldest_unharvested: f64,
    /// The largest used fraction of a harvest deadline among them.
    pub deadline_used: f64,
    /// Number of stored results, their bytes, and how many are incomplete.
    pub results: ResultsStatus,
    /// The used fraction of `maxBytesPerNamespace` in the fullest namespace.
    pub budget_used: f64,
}
