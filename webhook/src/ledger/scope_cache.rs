//! Caches what was computed from each Job: the scopes in which it takes a slot, and its group. Hundreds of rounds per
//! second read all Jobs of their namespace, so an entry stays until the Job, the policies or the labels of its
//! namespace change.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use job_handler_shared::{
    job::{group::GroupId, scope::group_of_job, snapshot::JobSnapshot},
    policy::{reference::Labels, set::PolicySet},
};

use crate::{
    ledger::{count, ledger_id::LedgerId, resolve::ObservedJob},
    limit::scopes::LimitRules,
};

/// Entries beyond twice the number of Jobs before the entries of deleted Jobs are dropped.
const SPARE_ENTRIES: usize = 64;

/// Finished Jobs by their group.
pub(crate) type RunsByGroup = HashMap<Arc<GroupId>, Vec<Arc<JobSnapshot>>>;

/// The cache of one ledger.
#[derive(Debug, Default)]
pub struct ScopeCache {
    /// Weak: the ledgers of deleted namespaces have no further rounds, and none of them should keep old policies.
    policies: Weak<PolicySet>,
    /// By the address of the Job, which no other Job has while the entry's weak reference exists.
    jobs: HashMap<usize, CachedScopes>,
}

#[derive(Debug)]
struct CachedScopes {
    /// Weak: several ledgers cache one Job, and none of them should keep it alive.
    job: Weak<JobSnapshot>,
    labels: Option<Arc<Labels>>,
    observed: Option<Arc<ObservedJob>>,
    /// `Some(None)` if the Job is known to have no group.
    group: Option<Option<Arc<GroupId>>>,
}

impl ScopeCache {
    /// Prepares for a round over `jobs` Jobs: clears the cache if the policies changed, and drops entries of deleted
    /// Jobs.
    pub(crate) fn prepare(&mut self, policies: &Arc<PolicySet>, jobs: usize) {
        let policies = Arc::downgrade(policies);
        if !self.policies.ptr_eq(&policies) {
            self.policies = policies;
            self.jobs.clear();
        }
        if self.jobs.len() > jobs * 2 + SPARE_ENTRIES {
            self.jobs.retain(|_, entry| entry.job.strong_count() > 0);
            self.jobs.shrink_to(self.jobs.len() * 2);
        }
    }

    /// The Jobs that take a slot and those whose uid is in `named`: the ledger has an attempt or slots of theirs. Skipping the others
    /// matters: there may be thousands of finished Jobs.
    pub fn observe(
        &mut self,
        rules: LimitRules<'_>,
        id: &LedgerId,
        jobs: &[Arc<JobSnapshot>],
        named: &HashSet<&str>,
    ) -> Vec<Arc<ObservedJob>> {
        let relevant = jobs.iter().filter(|job| job.is_active() || named.contains(&*job.uid));
        relevant
            .map(|job| {
                let entry = self.entry(rules, job);
                entry.observed.get_or_insert_with(|| Arc::new(count::observe(rules, id, job))).clone()
            })
            .collect()
    }

    /// The finished Jobs of these groups.
    pub fn finished_runs(
        &mut self,
        rules: LimitRules<'_>,
        jobs: &[Arc<JobSnapshot>],
        groups: &HashSet<GroupId>,
    ) -> RunsByGroup {
        let mut runs = RunsByGroup::new();
        if groups.is_empty() {
            return runs;
        }
        for job in jobs.iter().filter(|job| job.finished.is_some()) {
            let group = self
                .entry(rules, job)
                .group
                .get_or_insert_with(|| group_of_job(&rules.matching(job), job).map(Arc::new));
            if let Some(group) = group.as_ref().filter(|group| groups.contains(&***group)) {
                runs.entry(group.clone()).or_default().push(job.clone());
            }
        }
        runs
    }

    fn entry(&mut self, rules: LimitRules<'_>, job: &Arc<JobSnapshot>) -> &mut CachedScopes {
        let labels = (rules.namespaces)(&job.namespace);
        let new = |labels| CachedScopes { job: Arc::downgrade(job), labels, observed: None, group: None };
        let entry = self.jobs.entry(Arc::as_ptr(job) as usize).or_insert_with(|| new(labels.clone()));
        let same_labels = match (&entry.labels, &labels) {
            (Some(cached), Some(current)) => Arc::ptr_eq(cached, current),
            (None, None) => true,
            _ => false,
        };
        if !same_labels {
            *entry = new(labels);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use job_handler_shared::{
        job::snapshot::{Finished, Outcome},
        testing::policies::namespaced,
    };
    use serde_json::json;

    use super::*;

    fn policies(limit: &str) -> Arc<PolicySet> {
        let limits = json!([{"name": limit, "maxActiveJobs": 1}]);
        let spec = json!({"limits": limits, "group": {"type": "Labels", "labelKeys": ["id"]}});
        Arc::new(PolicySet::new([namespaced("p", spec)]))
    }

    fn job(name: &str, id: &str, finished: bool) -> Arc<JobSnapshot> {
        let ended = Finished {
            outcome: Outcome::Failed,
            reason: String::new(),
            message: String::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        Arc::new(JobSnapshot {
            namespace: "ci".into(),
            name: name.into(),
            uid: name.into(),
            labels: BTreeMap::from([("id".to_owned(), id.to_owned())]),
            finished: finished.then_some(ended),
            ..JobSnapshot::default()
        })
    }

    #[test]
    fn an_entry_stays_until_job_policies_or_labels_change() {
        let id = LedgerId::Namespace("ci".into());
        let (mut cache, mut other) = (ScopeCache::default(), ScopeCache::default());
        let mut jobs = vec![job("a", "1", false), job("b", "1", true), job("c", "2", true)];
        let labels = parking_lot::Mutex::new(Some(Arc::new(Labels::new())));
        let namespaces = |_: &str| labels.lock().clone();
        let mut round = |policies: &Arc<PolicySet>, jobs: &[Arc<JobSnapshot>]| {
            let rules = LimitRules { policies, namespaces: &namespaces };
            cache.prepare(policies, jobs.len());
            let seen = cache.observe(rules, &id, jobs, &HashSet::from(["c"]));
            let again = cache.observe(rules, &id, jobs, &HashSet::from(["c"]));
            assert!(seen.iter().zip(&again).all(|(one, other)| Arc::ptr_eq(one, other)), "computed once");
            // The cluster's ledger caches the same Jobs.
            other.prepare(policies, jobs.len());
            other.observe(rules, &LedgerId::Cluster, jobs, &HashSet::new());
            let groups = HashSet::from([GroupId { by: "labels:id".into(), value: "1".into() }]);
            let runs: Vec<String> = cache
                .finished_runs(rules, jobs, &groups)
                .values()
                .flatten()
                .map(|job| job.name.clone())
                .collect();
            let scopes: Vec<(String, Vec<String>)> =
                seen.iter().map(|seen| (seen.uid.clone(), seen.scopes.clone())).collect();
            (scopes, runs, cache.jobs.len())
        };
        let (few, many) = (policies("few"), policies("many"));
        let expected =
            |limit: &str| vec![("a".to_owned(), vec![format!("p/{limit}")]), ("c".to_owned(), vec![])];
        for _ in 0..2 {
            assert_eq!(round(&few, &jobs), (expected("few"), vec!["b".to_owned()], 3));
        }
        assert_eq!(round(&many, &jobs).0, expected("many"), "other policies");
        jobs[0] = job("a", "1", true);
        let (seen, mut runs, _) = round(&many, &jobs);
        runs.sort();
        assert_eq!((seen, runs), (vec![("c".to_owned(), vec![])], vec!["a".to_owned(), "b".to_owned()]));
        // Entries of deleted Jobs are dropped.
        for n in 0..500 {
            jobs[0] = job(&format!("a{n}"), "1", false);
            let (seen, _, entries) = round(&many, &jobs);
            assert_eq!(seen[0].0, format!("a{n}"));
            assert!(entries <= 2 * jobs.len() + SPARE_ENTRIES + jobs.len(), "{entries} entries");
        }
        // Policies may select the namespace by its labels.
        let before = Arc::as_ptr(&jobs[1]) as usize;
        *labels.lock() = Some(Arc::new(Labels::from([("team".to_owned(), "x".to_owned())])));
        round(&many, &jobs);
        let entry = &cache.jobs[&before];
        assert_eq!(entry.labels.as_ref().unwrap().len(), 1, "recomputed");
    }
}
