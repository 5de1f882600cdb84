//! Names a policy.

use std::{collections::BTreeMap, fmt};

use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// Labels of a Job or namespace.
pub type Labels = BTreeMap<String, String>;

/// The two kinds of policy, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum PolicyKind {
    /// A policy for the Jobs of its namespace.
    JobPolicy,
    /// A cluster-scoped policy, which may select namespaces.
    ClusterJobPolicy,
}

/// Names a policy. Displays as `JobPolicy ci/builds`. Ordered by precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// `JobPolicy` or `ClusterJobPolicy`.
    pub kind: PolicyKind,
    /// Namespace of a `JobPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; `kubectl describe` finds Events by it.
    pub uid: String,
}

impl PolicyRef {
    /// Names a policy of this kind by its metadata.
    pub fn of(kind: PolicyKind, policy: &impl ResourceExt) -> Self {
        Self {
            kind,
            namespace: policy.namespace(),
            name: policy.name_any(),
            uid: policy.uid().unwrap_or_default(),
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JobPolicy => "JobPolicy",
            Self::ClusterJobPolicy => "ClusterJobPolicy",
        })
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
