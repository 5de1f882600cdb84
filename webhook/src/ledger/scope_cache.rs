//! What was found out about Jobs: where each takes a slot, and of which group it is a run. Rounds come by the hundred each
//! second and look at all Jobs of their namespace, so it is remembered as long as neither the Job, nor the policies, nor the
//! labels of its namespace have changed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use job_handler_shared::{
    job::{group::GroupId, scope::group_of_job, snapshot::JobSnapshot},
    policy::{reference::Labels, set::PolicySet},
};

use crate::ledger::{
    count::{self, LedgerId},
    resolve::ObservedJob,
};
use crate::limit::scopes::LimitRules;

/// Entries beyond twice the Jobs that are there, before those of Jobs that are not are dropped.
const LEFT_OVER: usize = 64;

/// Finished Jobs by their group.
pub type RunsByGroup = HashMap<Arc<GroupId>, Vec<Arc<JobSnapshot>>>;

/// What is remembered, for one ledger.
#[derive(Debug, Default)]
pub struct ScopeCache {
    policies: Option<Arc<PolicySet>>,
    /// By the address of the Job, which is nobody else's as long as the entry knows it.
    jobs: HashMap<usize, CachedScopes>,
}

#[derive(Debug)]
struct CachedScopes {
    /// Not held: several ledgers look at one Job, and none of them would let it go before the others.
    job: Weak<JobSnapshot>,
    labels: Option<Arc<Labels>>,
    seen: Option<Arc<ObservedJob>>,
    group: Option<Option<Arc<GroupId>>>,
}

impl ScopeCache {
    /// Policies that are others than the last make all of it worth nothing. `there` Jobs are.
    pub fn begin(&mut self, policies: &Arc<PolicySet>, there: usize) {
        if !self.policies.as_ref().is_some_and(|last| Arc::ptr_eq(last, policies)) {
            self.policies = Some(policies.clone());
            self.jobs.clear();
        }
        if self.jobs.len() > there * 2 + LEFT_OVER {
            self.jobs.retain(|_, entry| entry.job.strong_count() > 0);
            self.jobs.shrink_to(self.jobs.len() * 2);
        }
    }

    /// The Jobs that take a slot, and those of `tried` uids, of which the ledger can be told something: of thousands of
    /// finished Jobs nothing is looked at.
    pub fn seen(
        &mut self,
        rules: LimitRules<'_>,
        id: &LedgerId,
        jobs: &[Arc<JobSnapshot>],
        tried: &HashSet<&str>,
    ) -> Vec<Arc<ObservedJob>> {
        let telling = jobs.iter().filter(|job| job.is_active() || tried.contains(&*job.uid));
        telling
            .map(|job| {
                let entry = self.entry(rules, job);
                entry.seen.get_or_insert_with(|| Arc::new(count::seen(rules, id, job))).clone()
            })
            .collect()
    }

    /// The finished Jobs of these groups.
    pub fn runs(
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
        let anew = |labels| CachedScopes { job: Arc::downgrade(job), labels, seen: None, group: None };
        let entry = self.jobs.entry(Arc::as_ptr(job) as usize).or_insert_with(|| anew(labels.clone()));
        let same = match (&entry.labels, &labels) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            *entry = anew(labels);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use job_handler_shared::{
        job::snapshot::{Finished, Outcome},
        policy::{parsed::Policy, spec::JobPolicy},
    };
    use serde_json::json;

    use super::*;

    fn policies(limit: &str) -> Arc<PolicySet> {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "p", "namespace": "ci", "uid": "p"},
            "spec": {"limits": [{"name": limit, "maxActiveJobs": 1}], "group": {"type": "Labels", "labelKeys": ["id"]}},
        }))
        .unwrap();
        Arc::new(PolicySet::new([Arc::new(Policy::namespaced(&policy).unwrap())]))
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

    /// Scopes as found anew each time, or as remembered: the same.
    #[test]
    fn nothing_is_remembered_beyond_its_reasons() {
        let id = LedgerId::Namespace("ci".into());
        let (mut found, mut other) = (ScopeCache::default(), ScopeCache::default());
        let mut jobs = vec![job("a", "1", false), job("b", "1", true), job("c", "2", true)];
        let labels = parking_lot::Mutex::new(Some(Arc::new(Labels::new())));
        let namespaces = |_: &str| labels.lock().clone();
        let mut look = |policies: &Arc<PolicySet>, jobs: &[Arc<JobSnapshot>]| {
            let rules = LimitRules { policies, namespaces: &namespaces };
            found.begin(policies, jobs.len());
            let seen = found.seen(rules, &id, jobs, &HashSet::from(["c"]));
            let again = found.seen(rules, &id, jobs, &HashSet::from(["c"]));
            assert!(seen.iter().zip(&again).all(|(one, other)| Arc::ptr_eq(one, other)), "found once");
            // The cluster's ledger is about the same Jobs.
            other.begin(policies, jobs.len());
            other.seen(rules, &LedgerId::Cluster, jobs, &HashSet::new());
            let groups = HashSet::from([GroupId { by: "labels:id".into(), value: "1".into() }]);
            let runs: Vec<String> =
                found.runs(rules, jobs, &groups).values().flatten().map(|job| job.name.clone()).collect();
            let scopes: Vec<(String, Vec<String>)> =
                seen.iter().map(|seen| (seen.uid.clone(), seen.scopes.clone())).collect();
            (scopes, runs, found.jobs.len())
        };
        let (few, many) = (policies("few"), policies("many"));
        let expected =
            |limit: &str| vec![("a".to_owned(), vec![format!("p/{limit}")]), ("c".to_owned(), vec![])];
        for _ in 0..2 {
            assert_eq!(look(&few, &jobs), (expected("few"), vec!["b".to_owned()], 3));
        }
        assert_eq!(look(&many, &jobs).0, expected("many"), "other policies");
        jobs[0] = job("a", "1", true);
        let (seen, mut runs, _) = look(&many, &jobs);
        runs.sort();
        assert_eq!((seen, runs), (vec![("c".to_owned(), vec![])], vec!["a".to_owned(), "b".to_owned()]));
        // Many come and go: what is no longer there goes too.
        for n in 0..500 {
            jobs[0] = job(&format!("a{n}"), "1", false);
            let (seen, _, entries) = look(&many, &jobs);
            assert_eq!(seen[0].0, format!("a{n}"));
            assert!(entries <= 2 * jobs.len() + LEFT_OVER + jobs.len(), "{entries} entries");
        }
        // Other labels of the namespace may mean other policies.
        let before = Arc::as_ptr(&jobs[1]) as usize;
        *labels.lock() = Some(Arc::new(Labels::from([("team".to_owned(), "x".to_owned())])));
        look(&many, &jobs);
        let entry = &found.jobs[&before];
        assert_eq!(entry.labels.as_ref().unwrap().len(), 1, "found anew");
    }
}
