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
    /// The parsed policy, or why there is none.
    pub policy: Result<Arc<Policy>, MissingPolicy>,
    /// The status that is stored.
    pub status: PolicyStatus,
}

/// Why nothing is known of a policy but its name and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingPolicy {
    /// It cannot be parsed.
    Unreadable(String),
    /// It has no room in its namespace and does not apply, so that its content is not kept.
    NoRoom,
    /// There is room for it again: it applies once a watch delivers it.
    Awaited,
}

impl PolicyEntry {
    /// Whether its status is written. In the namespaces that are always excluded, an admission policy denies the sink every
    /// write: the policy applies to nothing there, and only administrators write there.
    pub(crate) fn has_written_status(&self) -> bool {
        let namespace = self.reference.namespace.as_deref();
        namespace.is_none_or(|ns| !keys::EXCLUDED_NAMESPACES.contains(&ns))
    }
}

/// Whether a policy is in a namespace where Jobs are never changed.
pub(crate) fn is_excluded(policy: &PolicyRef, own_namespace: &str) -> bool {
    let namespace = policy.namespace.as_deref();
    namespace.is_some_and(|ns| ns == own_namespace || keys::EXCLUDED_NAMESPACES.contains(&ns))
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::reference::PolicyKind;

    use super::*;

    /// An admission policy denies the sink every write in kube-system: it would try for ever.
    #[test]
    fn in_kube_system_no_status_is_written() {
        for (namespace, written) in
            [(None, true), (Some("ci"), true), (Some(keys::NAMESPACE), true), (Some("kube-system"), false)]
        {
            let entry = PolicyEntry {
                reference: PolicyRef {
                    kind: PolicyKind::JobPolicy,
                    namespace: namespace.map(str::to_owned),
                    name: "p".to_owned(),
                    uid: "u".to_owned(),
                },
                generation: 1,
                policy: Err(MissingPolicy::NoRoom),
                status: PolicyStatus::default(),
            };
            assert_eq!(entry.has_written_status(), written, "{namespace:?}");
        }
    }
}
