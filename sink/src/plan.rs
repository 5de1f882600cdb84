//! What remains to be done about a Job: a pure function of the Job, the policies and what is stored.
//!
//! The steps are always the tail of one sequence, so that a stop anywhere is picked up from there:
//! harvest (shards, manifest) -> mark (annotations, TTL) -> announce (Event) -> delete.

use job_handler_shared::{
    combine::Effective,
    job::{Finished, JobSnapshot, Outcome},
    keys,
    policy::{CleanupPolicy, Logs},
};

use crate::store::ResultRef;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Capture and store the result.
    Harvest(Logs),
    /// Write the Job's annotations and its TTL.
    Mark(Ttl),
    /// Tell what the manifest says is still to be told.
    Announce,
    /// Delete the Job.
    Delete,
}

/// What becomes of `spec.ttlSecondsAfterFinished`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Set to this many seconds.
    Arm(i32),
    /// Taken off.
    Off,
    /// Left as it is.
    Leave,
}

/// What remains to be done. `effective` is of the enforced policies; `stored` is where the Job's result is.
pub fn steps(job: &JobSnapshot, effective: &Effective, stored: Option<&ResultRef>) -> Vec<Step> {
    let mut steps = Vec::new();
    let (Some(finished), Some(results)) = (&job.finished, &effective.results) else {
        // Nobody asks for its result (any more); what was stored and not told is still told.
        if stored.is_some_and(|place| place.pending) {
            steps.push(Step::Announce);
        }
        return steps;
    };
    if stored.is_none() {
        steps.push(Step::Harvest(results.logs.clone()));
    }
    if !is_marked(job, finished, stored) {
        steps.push(Step::Mark(ttl(job, finished, effective)));
    }
    if stored.is_none_or(|place| place.pending) {
        steps.push(Step::Announce);
    }
    if cleanup(effective, finished.outcome) == Some(CleanupPolicy::AfterHarvest)
        && job.deleting_since.is_none()
    {
        steps.push(Step::Delete);
    }
    steps
}

fn cleanup(effective: &Effective, outcome: Outcome) -> Option<CleanupPolicy> {
    effective.cleanup.as_ref().map(|cleanup| match outcome {
        Outcome::Completed => cleanup.succeeded_policy,
        Outcome::Failed => cleanup.failed_policy,
    })
}

/// Marked means: by this outcome and, where its place is known, with that name. The TTL is set in the same write, and
/// may be changed by people afterwards.
fn is_marked(job: &JobSnapshot, finished: &Finished, stored: Option<&ResultRef>) -> bool {
    let Some(stored) = stored else { return false };
    job.annotations.get(keys::STATUS).is_some_and(|status| status == finished.outcome.as_str())
        && job.annotations.get(keys::RESULTS) == Some(&stored.name)
}

/// The TTL that applies once the result is stored: the one that the webhook put aside, clamped again (the annotation can
/// be edited). A Job that was never stamped keeps its own, or gets the policies' default.
pub fn ttl(job: &JobSnapshot, finished: &Finished, effective: &Effective) -> Ttl {
    if cleanup(effective, finished.outcome) == Some(CleanupPolicy::Never) {
        return if job.ttl.is_some() { Ttl::Off } else { Ttl::Leave };
    }
    let bound = &effective.ttl;
    let default = || bound.default.as_ref().map(|from| from.value);
    let wished = match job.annotations.get(keys::TTL) {
        Some(text) => text.parse::<i64>().ok().filter(|seconds| *seconds >= 0).or_else(default),
        None => job.ttl.map(i64::from).or_else(default),
    };
    let max = bound.max.as_ref().map(|from| from.value);
    let seconds = match (wished, max) {
        (Some(wished), Some(max)) => Some(wished.min(max)),
        (wished, max) => wished.or(max),
    };
    let seconds = seconds.map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX));
    match seconds {
        Some(seconds) if job.ttl == Some(seconds) => Ttl::Leave,
        Some(seconds) => Ttl::Arm(seconds),
        None => Ttl::Leave,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use job_handler_shared::{
        combine::{Labels, Policy},
        policy::{JobPolicy, JobPolicySpec},
    };
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn effective(spec: serde_json::Value) -> Effective {
        let spec: JobPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = JobPolicy::new("p", spec);
        policy.metadata.namespace = Some("ci".into());
        let policy = Arc::new(Policy::namespaced(&policy).unwrap());
        Effective::of([&policy], &Labels::new())
    }

    fn job(outcome: Outcome, ttl: Option<i32>, wished: Option<&str>) -> JobSnapshot {
        let finished = Finished {
            outcome,
            reason: String::new(),
            message: String::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        JobSnapshot {
            finished: Some(finished),
            ttl,
            annotations: wished.map(|w| (keys::TTL.to_owned(), w.to_owned())).into_iter().collect(),
            ..JobSnapshot::default()
        }
    }

    fn at(name: &str, pending: bool) -> Option<ResultRef> {
        Some(ResultRef { namespace: "ci".into(), name: name.into(), pending })
    }

    #[test]
    fn the_steps_are_what_is_left_of_the_sequence() {
        let effective = effective(json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}}));
        let mut job = job(Outcome::Completed, Some(604_800), Some("60"));
        let harvest = Step::Harvest(Logs::default());
        let mark = Step::Mark(Ttl::Arm(60));
        let all = [harvest, mark, Step::Announce, Step::Delete];
        assert_eq!(steps(&job, &effective, None), all);
        assert_eq!(steps(&job, &effective, at("a-results", true).as_ref()), all[1..]);
        job.annotations.insert(keys::STATUS.into(), "completed".into());
        job.annotations.insert(keys::RESULTS.into(), "a-results".into());
        assert_eq!(steps(&job, &effective, at("a-results", true).as_ref()), all[2..]);
        assert_eq!(steps(&job, &effective, at("a-results", false).as_ref()), all[3..]);
        job.deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(steps(&job, &effective, at("a-results", false).as_ref()), []);
        // A forged mark gains nothing: only the manifest counts.
        assert_eq!(steps(&job, &effective, None)[0], all[0]);
    }

    #[test]
    fn nobody_asks_nothing_happens() {
        let job = job(Outcome::Failed, Some(10), None);
        assert_eq!(steps(&job, &effective(json!({"cleanup": {"failedPolicy": "AfterHarvest"}})), None), []);
        let running = JobSnapshot { suspended: true, ..JobSnapshot::default() };
        assert_eq!(steps(&running, &effective(json!({"results": {}})), None), []);
        assert_eq!(steps(&job, &Effective::default(), at("x", true).as_ref()), [Step::Announce]);
    }

    #[test]
    fn ttl_table() {
        let plain = json!({"results": {}});
        let stamped =
            json!({"results": {}, "stamp": {"ttlSecondsAfterFinished": {"default": 100, "max": 200}}});
        let never = json!({"results": {}, "cleanup": {"failedPolicy": "Never"}});
        use Outcome::{Completed, Failed};
        for (spec, outcome, ttl_now, wished, expected) in [
            (&plain, Completed, None, None, Ttl::Leave),
            (&plain, Completed, Some(50), None, Ttl::Leave),
            (&plain, Completed, Some(604_800), Some("0"), Ttl::Arm(0)),
            (&stamped, Completed, Some(604_800), Some("150"), Ttl::Arm(150)),
            (&stamped, Completed, Some(604_800), Some("99999"), Ttl::Arm(200)),
            (&stamped, Completed, Some(604_800), Some("-1"), Ttl::Arm(100)),
            (&stamped, Completed, Some(604_800), Some("soon"), Ttl::Arm(100)),
            (&stamped, Completed, None, None, Ttl::Arm(100)),
            (&stamped, Completed, Some(150), None, Ttl::Leave),
            (&stamped, Completed, Some(5000), None, Ttl::Arm(200)),
            (&never, Failed, Some(604_800), Some("60"), Ttl::Off),
            (&never, Failed, None, None, Ttl::Leave),
            (&never, Completed, Some(604_800), Some("60"), Ttl::Arm(60)),
        ] {
            let job = job(outcome, ttl_now, wished);
            let found = ttl(&job, job.finished.as_ref().unwrap(), &effective(spec.clone()));
            assert_eq!(found, expected, "{spec} {outcome:?} {ttl_now:?} {wished:?}");
        }
    }

    proptest! {
        /// Whatever stands in the annotation, the TTL that is armed is never above the maximum.
        #[test]
        fn never_above_the_maximum(wished in ".{0,12}", ttl_now in proptest::option::of(0i32..), max in 0i64..1_000_000) {
            let spec = json!({"results": {}, "stamp": {"ttlSecondsAfterFinished": {"max": max}}});
            let job = job(Outcome::Completed, ttl_now, Some(&wished));
            match ttl(&job, job.finished.as_ref().unwrap(), &effective(spec)) {
                Ttl::Arm(seconds) => prop_assert!(i64::from(seconds) <= max),
                Ttl::Leave => prop_assert!(job.ttl.is_none_or(|seconds| i64::from(seconds) <= max)),
                Ttl::Off => prop_assert!(false),
            }
        }
    }
}
