//! What remains to be done about a Job: a pure function of the Job, the policies and what is stored.
//!
//! The steps are always the tail of one sequence, so that a stop anywhere is picked up from there:
//! harvest (shards, manifest) -> mark (annotations, TTL) -> announce (Event) -> delete.
//! Only the next one is ever told: a step can take a minute, and who edits a policy or the Job meanwhile is heard.

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot, Outcome},
    keys,
    policy::{cleanup::CleanupPolicy, effective::EffectivePolicy, results::Results},
};

use crate::{
    jobs::marks::{bears_mark, is_retired},
    model::result_ref::ResultRef,
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Capture and store the result.
    Harvest(Results),
    /// Write the Job's annotations and its TTL.
    Mark(Ttl),
    /// Tell what the manifest says is still to be told.
    Announce,
    /// Delete the Job.
    Delete,
    /// Give back the TTL that was put aside for a harvest that nobody asks for any more.
    Restore(Ttl),
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

/// The next thing to be done. `effective` is of the enforced policies; `places` are where the Job's result is.
pub fn next(job: &JobSnapshot, effective: &EffectivePolicy, places: &[ResultRef]) -> Option<Step> {
    let pending = places.iter().any(|place| place.pending);
    let (Some(finished), Some(results)) = (&job.finished, &effective.results) else {
        // Nobody asks for its result (any more); what was stored and not told is still told.
        return match &job.finished {
            _ if pending => Some(Step::Announce),
            Some(finished) if !bears_mark(job, finished) && job.annotations.contains_key(keys::TTL) => {
                Some(Step::Restore(ttl(job, finished, effective)))
            }
            _ => None,
        };
    };
    let after_harvest = cleanup(effective, finished.outcome) == Some(CleanupPolicy::AfterHarvest);
    if places.is_empty() && is_retired(job) {
        // There was a result, and retention removed it.
        None
    } else if places.is_empty() {
        Some(Step::Harvest(results.clone()))
    } else if !is_marked(job, finished, places) {
        Some(Step::Mark(ttl(job, finished, effective)))
    } else if pending {
        Some(Step::Announce)
    } else {
        (after_harvest && job.deleting_since.is_none()).then_some(Step::Delete)
    }
}

fn cleanup(effective: &EffectivePolicy, outcome: Outcome) -> Option<CleanupPolicy> {
    effective.cleanup.as_ref().map(|cleanup| match outcome {
        Outcome::Completed => cleanup.succeeded_policy,
        Outcome::Failed => cleanup.failed_policy,
    })
}

/// Marked means: by this outcome and with the name of one of the places. The TTL is set in the same write, and may be
/// changed by people afterwards.
fn is_marked(job: &JobSnapshot, finished: &Finished, places: &[ResultRef]) -> bool {
    let named = job.annotations.get(keys::RESULTS);
    bears_mark(job, finished) && named.is_some_and(|name| places.iter().any(|place| place.name == *name))
}

/// The TTL that applies once the result is stored: the one that the webhook put aside, clamped again (the annotation can
/// be edited). A Job that was never stamped keeps its own, or gets the policies' default.
pub fn ttl(job: &JobSnapshot, finished: &Finished, effective: &EffectivePolicy) -> Ttl {
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

    use job_handler_shared::policy::{
        parsed::Policy,
        reference::Labels,
        spec::{JobPolicy, JobPolicySpec},
    };
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::jobs::marks::missed;

    fn effective(spec: serde_json::Value) -> EffectivePolicy {
        let spec: JobPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = JobPolicy::new("p", spec);
        policy.metadata.namespace = Some("ci".into());
        let policy = Arc::new(Policy::namespaced(&policy).unwrap());
        EffectivePolicy::combine([&policy], &Labels::new())
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

    fn at(name: &str, pending: bool) -> ResultRef {
        ResultRef { namespace: "ci".into(), name: name.into(), pending, ..ResultRef::default() }
    }

    fn marked(mut job: JobSnapshot, name: &str) -> JobSnapshot {
        job.annotations.insert(keys::STATUS.into(), job.finished.as_ref().unwrap().outcome.as_str().into());
        job.annotations.insert(keys::RESULTS.into(), name.into());
        job
    }

    #[test]
    fn the_next_step_is_the_first_that_is_left_of_the_sequence() {
        let effective = effective(json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}}));
        let plain = job(Outcome::Completed, Some(604_800), Some("60"));
        let (told, untold) = (at("a-results", false), at("a-results", true));
        let harvest = Some(Step::Harvest(Results::default()));
        let next = |job: &JobSnapshot, places: &[ResultRef]| next(job, &effective, places);
        assert_eq!(next(&plain, &[]), harvest);
        assert_eq!(next(&plain, std::slice::from_ref(&untold)), Some(Step::Mark(Ttl::Arm(60))));
        let mut marked = marked(plain, "a-results");
        assert_eq!(next(&marked, std::slice::from_ref(&untold)), Some(Step::Announce));
        assert_eq!(next(&marked, std::slice::from_ref(&told)), Some(Step::Delete));
        // Another place beside the one that the mark names: the mark stands.
        assert_eq!(next(&marked, &[told.clone(), at("b-results", false)]), Some(Step::Delete));
        marked.deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(next(&marked, &[told]), None);
        // A forged mark gains nothing: only the manifest counts.
        assert_eq!(next(&marked, &[]), harvest);
        // Nor does a copied word that the result has been removed: it names another Job.
        marked.uid = "u".into();
        marked.annotations.insert(keys::RETIRED.into(), "v".into());
        assert_eq!(next(&marked, &[]), harvest);
        marked.annotations.insert(keys::RETIRED.into(), "u".into());
        assert_eq!(next(&marked, &[]), None);
    }

    #[test]
    fn nobody_asks_nothing_happens() {
        let job = job(Outcome::Failed, Some(10), None);
        assert_eq!(next(&job, &effective(json!({"cleanup": {"failedPolicy": "AfterHarvest"}})), &[]), None);
        let running = JobSnapshot { suspended: true, ..JobSnapshot::default() };
        assert_eq!(next(&running, &effective(json!({"results": {}})), &[]), None);
        assert_eq!(next(&job, &EffectivePolicy::default(), &[at("x", true)]), Some(Step::Announce));
    }

    #[test]
    fn a_ttl_that_was_put_aside_is_given_back_where_nobody_asks() {
        let aside = job(Outcome::Failed, Some(604_800), Some("2"));
        let restore = |ttl| Some(Step::Restore(ttl));
        assert_eq!(next(&aside, &EffectivePolicy::default(), &[]), restore(Ttl::Arm(2)));
        let max = effective(json!({"stamp": {"ttlSecondsAfterFinished": {"max": 1}}}));
        assert_eq!(next(&aside, &max, &[]), restore(Ttl::Arm(1)));
        let never = effective(json!({"cleanup": {"failedPolicy": "Never"}}));
        assert_eq!(next(&aside, &never, &[]), restore(Ttl::Off));
        // Not where it was armed by the mark, or may still be: people may have changed it since.
        assert_eq!(next(&marked(aside.clone(), "a-results"), &EffectivePolicy::default(), &[]), None);
        let running = JobSnapshot { finished: None, ..aside };
        assert_eq!(next(&running, &EffectivePolicy::default(), &[]), None);
    }

    #[test]
    fn what_is_missed_of_a_job_that_is_gone() {
        let asked = effective(json!({"results": {}}));
        let plain = job(Outcome::Failed, None, None);
        assert_eq!(missed(&plain, &asked), Some(Results::default()));
        assert_eq!(missed(&marked(plain.clone(), "a-results"), &asked), None);
        assert_eq!(missed(&plain, &EffectivePolicy::default()), None);
        assert_eq!(missed(&JobSnapshot::default(), &asked), None);
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
