//! The JobLedgers: how many grants are pending per limit, and the failure streaks of groups.

use std::{collections::BTreeMap, sync::Arc};

use job_handler_shared::ledger::{
    crd::{CLUSTER_LEDGER, JobLedger, LedgerContents, LedgerError},
    failure_streak::{self, FailureStreak},
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
    /// `namespace/group`).
    pub(crate) fn pending(
        &self,
        policy: &str,
        is_active: impl Fn(&str) -> bool,
    ) -> BTreeMap<(String, String), u32> {
        let mut pending: BTreeMap<(String, String), u32> = BTreeMap::new();
        for (ledger, known) in self.ledgers.lock().iter() {
            let Ok(book) = &known.book else { continue };
            let place = if ledger == CLUSTER_LEDGER { "cluster" } else { ledger };
            let mut names: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
            for (name, _, granted) in book.attempts().filter(|(_, _, granted)| !is_active(&granted.job_uid)) {
                for scope in &granted.scopes {
                    // `<policy uid>/<limit>[/<group>]`.
                    let mut parts = scope.splitn(3, '/');
                    if parts.next() != Some(policy) {
                        continue;
                    }
                    let Some(limit) = parts.next() else { continue };
                    let scope = match parts.next().and_then(failure_streak::parse_group_key) {
                        Some(group) => format!("{place}/{}", group.value),
                        None => place.to_owned(),
                    };
                    // A name counts once, however often its create was tried.
                    let known = names.entry((limit.to_owned(), scope)).or_default();
                    if !known.contains(&name) {
                        known.push(name);
                    }
                }
            }
            for (scope, names) in names {
                *pending.entry(scope).or_default() += u32::try_from(names.len()).unwrap_or(u32::MAX);
            }
        }
        pending
    }
}

#[cfg(test)]
mod tests {
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
            }},
        }))
        .unwrap();
        let ledgers = LedgerIndex::default();
        ledgers.put(&ledger);
        let pending = ledgers.pending("p", |uid| uid == "runs");
        let count = |limit: &str, scope: &str| pending.get(&(limit.to_owned(), scope.to_owned())).copied();
        assert_eq!((count("all", "ci"), count("each", "ci/7")), (Some(2), Some(1)));
        assert_eq!(pending.len(), 2);
    }
}
