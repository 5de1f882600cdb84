//! Counts of Jobs and results in the cluster.

use job_handler_shared::policy::status::ResultsStatus;

/// Counts of Jobs and results in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClusterSummary {
    /// Jobs that take a slot.
    pub(crate) active: usize,
    /// Age in seconds of the oldest active Job.
    pub(crate) oldest_active: f64,
    /// Finished Jobs whose result is requested and not stored yet.
    pub(crate) unharvested: usize,
    /// Seconds since the first of them finished.
    pub(crate) oldest_unharvested: f64,
    /// The largest used fraction of a harvest deadline among them.
    pub(crate) deadline_used: f64,
    /// Number of stored results, their bytes, and how many are incomplete.
    pub(crate) results: ResultsStatus,
    /// The used fraction of `maxBytesPerNamespace` in the fullest namespace.
    pub(crate) budget_used: f64,
}
