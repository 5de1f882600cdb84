//! Which ledger: the one of a namespace, or the cluster's.

use job_handler_shared::ledger::crd::CLUSTER_LEDGER;

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
}
