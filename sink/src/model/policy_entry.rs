//! A policy as stored in the cluster.

use std::sync::Arc;

use job_handler_shared::{
    keys,
    policy::{parsed::Policy, reference::PolicyRef, status::PolicyStatus},
};

/// A policy as stored in the cluster.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Kind, name and uid.
    pub reference: PolicyRef,
    /// `metadata.generation`.
    pub generation: i64,
    /// The parsed policy, or why it cannot be parsed.
    pub policy: Result<Arc<Policy>, String>,
    /// The status that is stored.
    pub status: PolicyStatus,
}

/// Whether the policy is in a namespace where Jobs are never changed.
pub(crate) fn is_excluded(policy: &Policy, own_namespace: &str) -> bool {
    let namespace = policy.reference.namespace.as_deref();
    namespace.is_some_and(|ns| ns == own_namespace || keys::EXCLUDED_NAMESPACES.contains(&ns))
}
