//! Whether this sink may hold results in Secrets: a right that the base install does not give, and that can come and go
//! while it runs.
//!
//! The apiserver is asked for each verb by itself (`SelfSubjectAccessReview`, which every authenticated user may make by
//! the cluster's own role `system:basic-user`), for the Secrets of all namespaces: with half of the rights a result could
//! be written and never found again. Where all are there, the results in Secrets are watched as those in ConfigMaps are.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// What results in Secrets take: the same as those in ConfigMaps.
pub const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
/// What gives the rights.
pub const OVERLAY: &str = "manifests/overlays/secrets";

/// What is known about it; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Secrets(pub(super) Arc<Mutex<Standing>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    #[default]
    Unknown,
    May,
    MayNot(String),
}

impl Secrets {
    pub(super) fn lock(&self) -> MutexGuard<'_, Standing> {
        // Every change is one assignment.
        self.0.lock()
    }

    /// Whether results may be held in Secrets, and those that are be read.
    pub fn may(&self) -> bool {
        *self.lock() == Standing::May
    }

    /// Why they may not; nothing while that is not known.
    pub fn why_not(&self) -> Option<String> {
        match &*self.lock() {
            Standing::MayNot(why) => Some(why.clone()),
            Standing::Unknown | Standing::May => None,
        }
    }

    /// They may.
    pub fn allow(&self) -> bool {
        self.set(Standing::May)
    }

    /// They may not, and why.
    pub fn forbid(&self, why: String) -> bool {
        self.set(Standing::MayNot(why))
    }

    fn set(&self, now: Standing) -> bool {
        let mut known = self.lock();
        let news = *known != now;
        *known = now;
        news
    }
}
