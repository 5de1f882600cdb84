//! A policy as it stands in the cluster.

use std::sync::Arc;

use job_handler_shared::policy::{parsed::Policy, reference::PolicyRef, status::PolicyStatus};

/// A policy as it stands in the cluster.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Who it is.
    pub reference: PolicyRef,
    /// Its revision.
    pub generation: i64,
    /// The policy, or why it cannot be read.
    pub policy: Result<Arc<Policy>, String>,
    /// What its status says now.
    pub status: PolicyStatus,
}
