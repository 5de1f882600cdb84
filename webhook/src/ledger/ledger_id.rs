//! Which ledger: the one of a namespace, or the cluster's.

use std::sync::Arc;

use job_handler_shared::{
    ledger::crd::CLUSTER_LEDGER,
    policy::{label_keys::LabelKeys, set::PolicySet},
};

/// Identifies a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LedgerId {
    /// Limits that count over the cluster.
    Cluster,
    /// Limits that count within this namespace.
    Namespace(String),
}

impl LedgerId {
    /// The object's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster => CLUSTER_LEDGER,
            Self::Namespace(namespace) => namespace,
        }
    }

    /// The ledger whose object has this name.
    pub(crate) fn of_name(name: &str) -> Self {
        if name == CLUSTER_LEDGER { Self::Cluster } else { Self::Namespace(name.to_owned()) }
    }

    /// The namespace whose Jobs count, or `None` for all.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Cluster => None,
            Self::Namespace(namespace) => Some(namespace),
        }
    }

    /// The labels by which this ledger counts Jobs. Of the cluster's ledger they are those of the cluster's policies: what a
    /// JobPolicy names matters in its namespace only.
    pub(crate) fn label_keys<'a>(&self, policies: &'a PolicySet) -> &'a Arc<LabelKeys> {
        policies.label_keys().of(self.namespace().unwrap_or_default())
    }
}
