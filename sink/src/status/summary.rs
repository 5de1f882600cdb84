//! Counts of Jobs and results in the cluster, for gauges and for the policies' statuses. Pure.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    policy::{results::Results, set::PolicySet, status::ResultsStatus},
    text::human_bytes,
};

use crate::model::{result_ref::ResultRef, summary::ClusterSummary};

/// Counts Jobs and results. `namespace_bytes_max`: what the operator allows the results of a namespace. `wanted` returns what
/// the policies store of a Job, if anything.
pub(crate) fn collect(
    jobs: &[Arc<JobSnapshot>],
    results: &[ResultRef],
    policies: &PolicySet,
    namespace_bytes_max: Option<u64>,
    wanted: impl Fn(&JobSnapshot) -> Option<Results>,
    now: Timestamp,
) -> ClusterSummary {
    let mut summary = ClusterSummary { results: of_results(results), ..ClusterSummary::default() };
    for job in jobs {
        if job.is_active() {
            summary.active += 1;
            let since = job.started.unwrap_or(job.created);
            summary.oldest_active = summary.oldest_active.max(seconds(since, now));
        }
        // Evaluating policies is expensive, and nearly all finished Jobs are marked.
        if let Some(finished) = &job.finished
            && !job.annotations.contains_key(keys::RESULTS)
            && let Some(wanted) = wanted(job)
        {
            summary.unharvested += 1;
            let age = seconds(finished.at, now);
            summary.oldest_unharvested = summary.oldest_unharvested.max(age);
            let deadline = f64::from(wanted.harvest_deadline_seconds).max(1.0);
            summary.deadline_used = summary.deadline_used.max(age / deadline);
        }
    }
    summary.budget_used = budget_used(results, policies, namespace_bytes_max.unwrap_or(u64::MAX));
    summary
}

/// The results that each policy requested, by its uid.
pub(crate) fn by_policy(results: &[ResultRef]) -> HashMap<&str, ResultsStatus> {
    let mut requested: HashMap<&str, Vec<&ResultRef>> = HashMap::new();
    for result in results {
        result.policies.split(',').for_each(|uid| requested.entry(uid).or_default().push(result));
    }
    requested.into_iter().map(|(uid, results)| (uid, of_results(results))).collect()
}

/// Of a policy without results.
pub(crate) fn no_results() -> ResultsStatus {
    of_results([])
}

fn of_results<'a>(results: impl IntoIterator<Item = &'a ResultRef>) -> ResultsStatus {
    let mut status = ResultsStatus::default();
    for result in results {
        status.stored += 1;
        status.bytes = status.bytes.saturating_add(result.bytes);
        status.incomplete += u32::from(result.lost > 0);
    }
    status.size = human_bytes(status.bytes);
    status
}

fn budget_used(results: &[ResultRef], policies: &PolicySet, most: u64) -> f64 {
    let mut namespaces: HashMap<&str, u64> = HashMap::new();
    for result in results {
        let bytes = namespaces.entry(&result.namespace).or_default();
        *bytes = bytes.saturating_add(result.bytes);
    }
    // Of several policies the larger budget applies.
    let budget = |namespace: &str| {
        let here = |own: &Option<String>| own.as_deref().is_none_or(|own| own == namespace);
        let all = policies.iter().filter(|policy| here(&policy.reference.namespace));
        let bytes =
            all.filter_map(|policy| policy.spec.results.as_ref()).map(|r| r.max_bytes_per_namespace.0);
        bytes.max().map(|bytes| bytes.min(most))
    };
    let used = namespaces.iter().filter_map(|(namespace, bytes)| Some(ratio(*bytes, budget(namespace)?)));
    used.fold(0.0, f64::max)
}

fn ratio(a: u64, b: u64) -> f64 {
    // Exact: an etcd holds far less than 2^53 bytes.
    a as f64 / b.max(1) as f64
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::{Finished, Outcome};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn result(namespace: &str, bytes: u64, lost: u32, policies: &str) -> ResultRef {
        ResultRef {
            namespace: namespace.into(),
            bytes,
            lost,
            policies: policies.into(),
            ..ResultRef::default()
        }
    }

    #[test]
    fn active_unharvested_and_stored_are_counted() {
        let active = JobSnapshot { started: Some(at(40)), ..JobSnapshot::default() };
        let finished =
            Finished { outcome: Outcome::Failed, reason: String::new(), message: String::new(), at: at(50) };
        let waits = JobSnapshot { finished: Some(finished), ..JobSnapshot::default() };
        let mut marked = waits.clone();
        marked.annotations.insert(keys::RESULTS.into(), "a-results".into());
        let jobs: Vec<_> = [active, waits, marked].map(Arc::new).into();
        let results = [result("a", 1 << 20, 0, "p,q"), result("a", 512, 2, "q"), result("b", 7, 0, "")];
        let wanted = |_: &JobSnapshot| Some(Results { harvest_deadline_seconds: 100, ..Results::default() });
        let found = collect(&jobs, &results, &PolicySet::default(), None, wanted, at(100));
        assert_eq!((found.active, found.unharvested), (1, 1));
        assert_eq!((found.oldest_active, found.oldest_unharvested, found.deadline_used), (60.0, 50.0, 0.5));
        assert_eq!((found.results.stored, found.results.incomplete), (3, 1));
        assert_eq!(found.results.size, "1.0Mi");
        let q = &by_policy(&results)["q"];
        assert_eq!((q.stored, q.bytes, q.incomplete), (2, (1 << 20) + 512, 1));
        assert!(!by_policy(&results).contains_key("r"));
        assert_eq!(no_results().size, "0");
    }
}
