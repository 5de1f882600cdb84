//! Whether this sink may store results in Secrets. The base install does not give this right, and it can be granted and
//! revoked while the sink runs.
//!
//! The sink asks for each verb (`SelfSubjectAccessReview`, which `system:basic-user` allows every authenticated user) on
//! the Secrets of all namespaces: with half of the verbs a result could be written and never found again.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::observe::changes::Changes;

/// The verbs that results in Secrets need: the same as for ConfigMaps.
pub(super) const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
/// What grants them.
pub(super) const OVERLAY: &str = "manifests/overlays/secrets";

/// The right to Secrets as last seen; clones share it.
#[derive(Clone, Debug, Default)]
pub struct SecretAccess {
    access: Arc<Mutex<SecretRight>>,
    changes: Changes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum SecretRight {
    #[default]
    Unknown,
    Allowed,
    Denied(String),
}

impl SecretAccess {
    pub(super) fn new(changes: Changes) -> Self {
        Self { access: Arc::default(), changes }
    }

    pub(super) fn is_unknown(&self) -> bool {
        *self.access.lock() == SecretRight::Unknown
    }

    /// Whether results may be stored in Secrets, and read from them.
    pub(crate) fn is_allowed(&self) -> bool {
        *self.access.lock() == SecretRight::Allowed
    }

    /// Why access is denied; None if it is allowed or not known yet.
    pub(crate) fn denial(&self) -> Option<String> {
        match &*self.access.lock() {
            SecretRight::Denied(why) => Some(why.clone()),
            SecretRight::Unknown | SecretRight::Allowed => None,
        }
    }

    /// Records that access is allowed; returns whether that is new.
    pub fn allow(&self) -> bool {
        self.set(SecretRight::Allowed)
    }

    /// Records that access is denied, and why; returns whether that is new.
    pub fn deny(&self, why: String) -> bool {
        self.set(SecretRight::Denied(why))
    }

    fn set(&self, access: SecretRight) -> bool {
        let changed = {
            let mut known = self.access.lock();
            let changed = *known != access;
            *known = access;
            changed
        };
        if changed {
            self.changes.notify();
        }
        changed
    }
}
