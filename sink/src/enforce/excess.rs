//! Which of the Jobs that the webhook missed exceed a limit. Pure.

use std::{collections::HashMap, sync::Arc};

use job_handler_shared::{
    job::{
        scope::{ScopeKey, scopes},
        snapshot::JobSnapshot,
    },
    policy::{
        limit::{Limit, WhenFull},
        parsed::Policy,
    },
};

/// A Job, and the policies whose limits count it.
#[derive(Clone, Debug)]
pub(crate) struct LimitedBy {
    pub(crate) job: Arc<JobSnapshot>,
    pub(crate) policies: Vec<Arc<Policy>>,
}

/// The newest of the missed Jobs that exceed a limit, by uid, with that limit. `unfinished` are all Jobs that may take
/// slots, each with its policies.
pub(crate) fn excess(unfinished: &[LimitedBy], missed: &[LimitedBy]) -> HashMap<String, (ScopeKey, Limit)> {
    let mut active: HashMap<ScopeKey, u32> = HashMap::new();
    for LimitedBy { job, policies } in unfinished.iter().filter(|limited| limited.job.is_active()) {
        for (scope, _) in scopes(&policies.iter().collect::<Vec<_>>(), job) {
            *active.entry(scope).or_default() += 1;
        }
    }
    let mut newest: Vec<&LimitedBy> = missed.iter().filter(|missed| missed.job.is_active()).collect();
    newest.sort_by(|a, b| (b.job.created, &b.job.uid).cmp(&(a.job.created, &a.job.uid)));
    let mut excess = HashMap::new();
    for LimitedBy { job, policies } in newest {
        let taken = scopes(&policies.iter().collect::<Vec<_>>(), job);
        let over = |(scope, limit): &&(ScopeKey, &Limit)| {
            active.get(scope).copied().unwrap_or_default() > limit.max_active_jobs
        };
        // A limit that queues comes first: suspending the Job helps. For one that rejects there is only an Event.
        let mut full: Vec<_> = taken.iter().filter(over).cloned().collect();
        full.sort_by_key(|(_, limit)| limit.when_full != WhenFull::Queue);
        let Some((scope, limit)) = full.first() else { continue };
        // A suspended Job frees its slots in all scopes. A Job that keeps running exceeds each full scope once, so that
        // older Jobs are not reported for the same slot.
        let relieved = if limit.when_full == WhenFull::Queue { &taken } else { &full };
        for (scope, _) in relieved {
            active.entry(scope.clone()).and_modify(|n| *n = n.saturating_sub(1));
        }
        excess.insert(job.uid.clone(), (scope.clone(), (*limit).clone()));
    }
    excess
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use job_handler_shared::testing::policies::namespaced;
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Uids of the excess Jobs among 1 to 4, each with the limit that it exceeds.
    fn too_many(limits: &Value) -> Vec<(String, String)> {
        let policy = namespaced("p", json!({"limits": limits}));
        let missed = |n: i64| {
            let (name, uid) = (n.to_string(), n.to_string());
            let job =
                JobSnapshot { namespace: "ci".into(), name, uid, created: at(n), ..JobSnapshot::default() };
            LimitedBy { job: Arc::new(job), policies: vec![policy.clone()] }
        };
        let missed: Vec<LimitedBy> = (1..=4).map(missed).collect();
        let excess = super::excess(&missed, &missed).into_iter();
        let mut found: Vec<_> = excess.map(|(uid, (scope, _))| (uid, scope.limit)).collect();
        found.sort();
        found
    }

    #[test]
    fn only_the_newest_jobs_are_excess() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(uid, limit)| ((*uid).to_owned(), (*limit).to_owned())).collect()
        };
        let rejects = json!({"name": "r", "maxActiveJobs": 3});
        let queues = json!({"name": "q", "maxActiveJobs": 2, "whenFull": "Queue"});
        assert_eq!(too_many(&json!([rejects])), pairs(&[("4", "r")]));
        assert_eq!(too_many(&json!([queues])), pairs(&[("3", "q"), ("4", "q")]));
        assert_eq!(too_many(&json!([rejects, queues])), pairs(&[("3", "q"), ("4", "q")]));
        let few = json!({"name": "f", "maxActiveJobs": 1});
        assert_eq!(too_many(&json!([few, queues])), pairs(&[("2", "f"), ("3", "q"), ("4", "q")]));
    }
}
