//! The JobLedgers: how many grants are pending per limit, and the failure streaks of groups.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::{
    ledger::{
        crd::{CLUSTER_LEDGER, JobLedger, LedgerContents, LedgerError},
        failure_streak::{self, FailureStreak},
    },
    policy::reference::PolicyRef,
};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::observe::changes::Changes;

/// A JobLedger as last seen.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// `metadata.resourceVersion`.
    pub(crate) version: String,
    /// Granted attempts.
    pub(crate) book: Result<LedgerContents, LedgerError>,
    /// Failure streaks of groups, by [`failure_streak::group_key`].
    pub(crate) streaks: BTreeMap<String, FailureStreak>,
}

/// A slot that a ledger holds by the uid of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldInScope {
    pub(crate) limit: String,
    /// `cluster`, a namespace, or `namespace/group`.
    pub(crate) scope: String,
    /// The Job's uid.
    pub(crate) job: String,
    /// Whether the Job is active; else only its pods run on.
    pub(crate) runs: bool,
}

/// All JobLedgers by name; clones share the same index.
#[derive(Clone, Debug, Default)]
pub(crate) struct LedgerIndex {
    ledgers: Arc<Mutex<BTreeMap<String, Arc<Ledger>>>>,
    changes: Changes,
}

impl From<&JobLedger> for Ledger {
    fn from(ledger: &JobLedger) -> Self {
        Self {
            uid: ledger.uid().unwrap_or_default(),
            version: ledger.resource_version().unwrap_or_default(),
            book: ledger.spec.contents(),
            streaks: ledger.spec.streaks(),
        }
    }
}

impl LedgerIndex {
    /// An index that reports its changes to `changes`.
    pub(super) fn new(changes: Changes) -> Self {
        Self { ledgers: Arc::default(), changes }
    }

    pub(crate) fn put(&self, ledger: &JobLedger) {
        self.ledgers.lock().insert(ledger.name_any(), Arc::new(ledger.into()));
        self.changes.notify();
    }

    pub(crate) fn remove_where(&self, is_gone: impl Fn(&str) -> bool) {
        self.ledgers.lock().retain(|name, _| !is_gone(name));
        self.changes.notify();
    }

    /// The ledger of a namespace.
    pub(crate) fn get(&self, namespace: &str) -> Option<Arc<Ledger>> {
        self.ledgers.lock().get(namespace).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.ledgers.lock().keys().cloned().collect()
    }

    /// Counts a policy's grants whose Job is not active yet, by limit and scope (`cluster`, a namespace, or
    /// `namespace/group`); the second number is of those that were granted before `usually_stored`.
    pub(crate) fn pending(
        &self,
        policy: &PolicyRef,
        usually_stored: Timestamp,
        is_active: impl Fn(&str) -> bool,
    ) -> BTreeMap<(String, String), (u32, u32)> {
        let mut pending: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
        for (ledger, known) in self.in_reach(policy) {
            let Ok(book) = &known.book else { continue };
            let mut names: BTreeMap<(String, String), BTreeMap<&str, Timestamp>> = BTreeMap::new();
            for (name, _, granted) in book.attempts().filter(|(_, _, granted)| !is_active(&granted.job_uid)) {
                for counted in granted.scopes.iter().filter_map(|scope| parse_scope(policy, &ledger, scope)) {
                    // A name counts once, however often its create was tried.
                    let latest = names.entry(counted).or_default().entry(name).or_insert(granted.since);
                    *latest = granted.since.max(*latest);
                }
            }
            for (scope, names) in names {
                let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let counts = pending.entry(scope).or_default();
                counts.0 += number(names.len());
                counts.1 += number(names.values().filter(|since| **since < usually_stored).count());
            }
        }
        pending
    }

    /// The slots of a policy's limits that the ledgers hold by uids of Jobs.
    pub(crate) fn held(&self, policy: &PolicyRef, is_active: impl Fn(&str) -> bool) -> Vec<HeldInScope> {
        let mut held = Vec::new();
        for (ledger, known) in self.in_reach(policy) {
            let Ok(book) = &known.book else { continue };
            for (uid, slot) in &book.held {
                let scopes = slot.scopes.iter().filter_map(|scope| parse_scope(policy, &ledger, scope));
                let (job, runs) = (uid, is_active(uid));
                held.extend(scopes.map(|(limit, scope)| HeldInScope {
                    limit,
                    scope,
                    job: job.clone(),
                    runs,
                }));
            }
        }
        held
    }

    /// The ledgers in which a policy counts: a JobPolicy in that of its namespace only.
    fn in_reach(&self, policy: &PolicyRef) -> Vec<(String, Arc<Ledger>)> {
        let ledgers = self.ledgers.lock();
        let is_in_reach = |name: &str| policy.namespace.as_deref().is_none_or(|own| own == name);
        let known = ledgers.iter().filter(|(name, _)| is_in_reach(name));
        known.map(|(name, known)| (name.clone(), known.clone())).collect()
    }
}

/// The limit and the scope of a scope id, `<policy uid>/<limit>[/<group>]`, if it is of this policy.
fn parse_scope(policy: &PolicyRef, ledger: &str, id: &str) -> Option<(String, String)> {
    let mut parts = id.splitn(3, '/');
    parts.next().filter(|uid| *uid == policy.uid)?;
    let limit = parts.next()?;
    let place = if ledger == CLUSTER_LEDGER { "cluster" } else { ledger };
    let scope = match parts.next().and_then(failure_streak::parse_group_key) {
        Some(group) => format!("{place}/{}", group.value),
        None => place.to_owned(),
    };
    Some((limit.to_owned(), scope))
}

#[cfg(test)]
mod tests {
    use job_handler_shared::testing::policies::namespaced;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_grant_is_pending_until_its_job_is_active_and_counts_once_per_name() {
        let granted = |uid: &str, scopes: &[&str]| {
            json!({"jobUid": uid, "kind": "create", "revision": "r", "scopes": scopes,
                "since": "2026-01-01T00:00:00Z"})
        };
        let ledger: JobLedger = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobLedger", "metadata": {"name": "ci"},
            "spec": {"format": 1, "pending": {
                "ci/a": {"1": granted("a1", &["p/all", "p/each/labels:id=7"]), "2": granted("a2", &["p/all"])},
                "ci/b": {"3": granted("b", &["p/all"])},
                "ci/c": {"4": granted("runs", &["p/all"]), "5": granted("c", &["other/all"])},
            }, "held": {"z": {"name": "ci/z", "scopes": ["p/each/labels:id=7", "other/all"], "from": 3,
                "since": "2026-01-01T00:00:00Z"}}},
        }))
        .unwrap();
        let ledgers = LedgerIndex::default();
        ledgers.put(&ledger);
        let policy = &namespaced("p", json!({})).reference;
        let pending = ledgers.pending(policy, Timestamp::UNIX_EPOCH, |uid| uid == "runs");
        let count = |limit: &str, scope: &str| pending.get(&(limit.to_owned(), scope.to_owned())).copied();
        assert_eq!((count("all", "ci"), count("each", "ci/7")), (Some((2, 0)), Some((1, 0))));
        assert_eq!(pending.len(), 2);
        let later = ledgers.pending(policy, Timestamp::MAX, |uid| uid == "runs");
        assert_eq!(later.get(&("all".to_owned(), "ci".to_owned())), Some(&(2, 2)));
        let orphaned =
            HeldInScope { limit: "each".into(), scope: "ci/7".into(), job: "z".into(), runs: false };
        assert_eq!(ledgers.held(policy, |_| false), std::slice::from_ref(&orphaned));
        assert_eq!(ledgers.held(policy, |uid| uid == "z"), [HeldInScope { runs: true, ..orphaned }]);
    }
}
