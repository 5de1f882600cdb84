//! Decides the next step for a Job: a pure function of the Job, its policies and what is stored.
//!
//! The steps are always the tail of one sequence, so that a restart continues where the last process stopped:
//! harvest (shards, manifest) -> mark (annotations, TTL) -> announce (Event) -> delete.
//! It returns only the next step: a step can take a minute, and a policy or the Job may change meanwhile.

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot, Outcome},
    keys,
    policy::{cleanup::CleanupPolicy, effective::EffectivePolicy, results::Results},
};

use crate::{
    jobs::result_annotations::{is_harvested_as, is_recorded, is_result_removed},
    model::result_ref::ResultRef,
};

/// A step of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Capture and store the result.
    Harvest(Results),
    /// Write the annotations and the TTL of the Job.
    Mark(TtlChange),
    /// Publish the Events that the manifest lists as pending.
    Announce,
    Delete,
    /// Restore the TTL that was parked for a harvest that no policy asks for any more.
    Restore(TtlChange),
}

/// The change of `spec.ttlSecondsAfterFinished`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TtlChange {
    /// Set it to this many seconds.
    Set(i32),
    Remove,
    Keep,
}

/// Returns the next step. `effective` combines the enforced policies; `stored` are the stored results of the Job.
pub(crate) fn next_step(
    job: &JobSnapshot,
    effective: &EffectivePolicy,
    stored: &[ResultRef],
) -> Option<Step> {
    let pending = stored.iter().any(|result| result.pending);
    let (Some(finished), Some(results)) = (&job.finished, &effective.results) else {
        // No policy asks for its result (any more); pending Events of a stored result are still published.
        return match &job.finished {
            _ if pending => Some(Step::Announce),
            Some(finished) if !is_harvested_as(job, finished) && job.annotations.contains_key(keys::TTL) => {
                Some(Step::Restore(ttl(job, finished, effective)))
            }
            _ => None,
        };
    };
    let after_harvest = cleanup(effective, finished.outcome) == Some(CleanupPolicy::AfterHarvest);
    if stored.is_empty() && is_result_removed(job) {
        // Retention removed its result.
        None
    } else if stored.is_empty() {
        Some(Step::Harvest(results.clone()))
    } else if !is_marked(job, stored) {
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

/// Whether the Job is marked with its outcome and the name of one of the stored results. The same write sets the TTL;
/// users may change it afterwards.
fn is_marked(job: &JobSnapshot, stored: &[ResultRef]) -> bool {
    stored.iter().any(|result| is_recorded(job, &result.name))
}

/// Returns the TTL that applies once the result is stored: the one that the webhook parked, clamped again since users can
/// edit the annotation. A Job that was never stamped keeps its own TTL, or gets the default of its policies.
fn ttl(job: &JobSnapshot, finished: &Finished, effective: &EffectivePolicy) -> TtlChange {
    if cleanup(effective, finished.outcome) == Some(CleanupPolicy::Never) {
        return if job.ttl.is_some() { TtlChange::Remove } else { TtlChange::Keep };
    }
    let bound = &effective.ttl;
    let default = || bound.default.as_ref().map(|from| from.value);
    let requested = match job.annotations.get(keys::TTL) {
        Some(text) => text.parse::<i64>().ok().filter(|seconds| *seconds >= 0).or_else(default),
        None => job.ttl.map(i64::from).or_else(default),
    };
    let max = bound.max.as_ref().map(|from| from.value);
    let seconds = match (requested, max) {
        (Some(requested), Some(max)) => Some(requested.min(max)),
        (requested, max) => requested.or(max),
    };
    let seconds = seconds.map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX));
    match seconds {
        Some(seconds) if job.ttl == Some(seconds) => TtlChange::Keep,
        Some(seconds) => TtlChange::Set(seconds),
        None => TtlChange::Keep,
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{policy::reference::Labels, testing::policies::namespaced};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::jobs::result_annotations::missing_results;

    fn effective(spec: serde_json::Value) -> EffectivePolicy {
        EffectivePolicy::combine([&namespaced("p", spec)], &Labels::new())
    }

    fn job(outcome: Outcome, ttl: Option<i32>, requested: Option<&str>) -> JobSnapshot {
        let finished = Finished {
            outcome,
            reason: String::new(),
            message: String::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        JobSnapshot {
            finished: Some(finished),
            ttl,
            annotations: requested.map(|w| (keys::TTL.to_owned(), w.to_owned())).into_iter().collect(),
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
    fn the_next_step_is_the_first_that_is_missing() {
        let effective = effective(json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}}));
        let plain = job(Outcome::Completed, Some(604_800), Some("60"));
        let (announced, pending) = (at("a-results", false), at("a-results", true));
        let harvest = Some(Step::Harvest(Results::default()));
        let next = |job: &JobSnapshot, stored: &[ResultRef]| next_step(job, &effective, stored);
        assert_eq!(next(&plain, &[]), harvest);
        assert_eq!(next(&plain, std::slice::from_ref(&pending)), Some(Step::Mark(TtlChange::Set(60))));
        let mut marked = marked(plain, "a-results");
        assert_eq!(next(&marked, std::slice::from_ref(&pending)), Some(Step::Announce));
        assert_eq!(next(&marked, std::slice::from_ref(&announced)), Some(Step::Delete));
        // A further result besides the one that the mark names: the mark stays valid.
        assert_eq!(next(&marked, &[announced.clone(), at("b-results", false)]), Some(Step::Delete));
        marked.deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(next(&marked, &[announced]), None);
        // A forged mark has no effect: only the manifest counts.
        assert_eq!(next(&marked, &[]), harvest);
        // Nor does a copied annotation that the result was removed: it names another Job.
        marked.uid = "u".into();
        marked.annotations.insert(keys::RETIRED.into(), "v".into());
        assert_eq!(next(&marked, &[]), harvest);
        marked.annotations.insert(keys::RETIRED.into(), "u".into());
        assert_eq!(next(&marked, &[]), None);
    }

    #[test]
    fn nothing_happens_unless_a_policy_asks() {
        let job = job(Outcome::Failed, Some(10), None);
        assert_eq!(
            next_step(&job, &effective(json!({"cleanup": {"failedPolicy": "AfterHarvest"}})), &[]),
            None
        );
        let running = JobSnapshot { suspended: true, ..JobSnapshot::default() };
        assert_eq!(next_step(&running, &effective(json!({"results": {}})), &[]), None);
        assert_eq!(next_step(&job, &EffectivePolicy::default(), &[at("x", true)]), Some(Step::Announce));
    }

    #[test]
    fn a_parked_ttl_is_restored_if_no_policy_asks_for_the_result() {
        let parked = job(Outcome::Failed, Some(604_800), Some("2"));
        let restore = |ttl| Some(Step::Restore(ttl));
        assert_eq!(next_step(&parked, &EffectivePolicy::default(), &[]), restore(TtlChange::Set(2)));
        let max = effective(json!({"stamp": {"ttlSecondsAfterFinished": {"max": 1}}}));
        assert_eq!(next_step(&parked, &max, &[]), restore(TtlChange::Set(1)));
        let never = effective(json!({"cleanup": {"failedPolicy": "Never"}}));
        assert_eq!(next_step(&parked, &never, &[]), restore(TtlChange::Remove));
        // Not once the mark has set it, since users may have changed it; nor for an unfinished Job.
        assert_eq!(next_step(&marked(parked.clone(), "a-results"), &EffectivePolicy::default(), &[]), None);
        let running = JobSnapshot { finished: None, ..parked };
        assert_eq!(next_step(&running, &EffectivePolicy::default(), &[]), None);
    }

    #[test]
    fn a_deleted_job_without_a_mark_misses_its_results() {
        let asked = effective(json!({"results": {}}));
        let plain = job(Outcome::Failed, None, None);
        assert_eq!(missing_results(&plain, &asked), Some(Results::default()));
        assert_eq!(missing_results(&marked(plain.clone(), "a-results"), &asked), None);
        assert_eq!(missing_results(&plain, &EffectivePolicy::default()), None);
        assert_eq!(missing_results(&JobSnapshot::default(), &asked), None);
    }

    #[test]
    fn the_ttl_is_the_parked_one_within_the_bounds() {
        let plain = json!({"results": {}});
        let stamped =
            json!({"results": {}, "stamp": {"ttlSecondsAfterFinished": {"default": 100, "max": 200}}});
        let never = json!({"results": {}, "cleanup": {"failedPolicy": "Never"}});
        use Outcome::{Completed, Failed};
        for (spec, outcome, ttl_now, requested, expected) in [
            (&plain, Completed, None, None, TtlChange::Keep),
            (&plain, Completed, Some(50), None, TtlChange::Keep),
            (&plain, Completed, Some(604_800), Some("0"), TtlChange::Set(0)),
            (&stamped, Completed, Some(604_800), Some("150"), TtlChange::Set(150)),
            (&stamped, Completed, Some(604_800), Some("99999"), TtlChange::Set(200)),
            (&stamped, Completed, Some(604_800), Some("-1"), TtlChange::Set(100)),
            (&stamped, Completed, Some(604_800), Some("soon"), TtlChange::Set(100)),
            (&stamped, Completed, None, None, TtlChange::Set(100)),
            (&stamped, Completed, Some(150), None, TtlChange::Keep),
            (&stamped, Completed, Some(5000), None, TtlChange::Set(200)),
            (&never, Failed, Some(604_800), Some("60"), TtlChange::Remove),
            (&never, Failed, None, None, TtlChange::Keep),
            (&never, Completed, Some(604_800), Some("60"), TtlChange::Set(60)),
        ] {
            let job = job(outcome, ttl_now, requested);
            let found = ttl(&job, job.finished.as_ref().unwrap(), &effective(spec.clone()));
            assert_eq!(found, expected, "{spec} {outcome:?} {ttl_now:?} {requested:?}");
        }
    }

    proptest! {
        /// Whatever the annotation contains.
        #[test]
        fn the_ttl_is_never_above_the_maximum(requested in ".{0,12}", ttl_now in proptest::option::of(0i32..), max in 0i64..1_000_000) {
            let spec = json!({"results": {}, "stamp": {"ttlSecondsAfterFinished": {"max": max}}});
            let job = job(Outcome::Completed, ttl_now, Some(&requested));
            match ttl(&job, job.finished.as_ref().unwrap(), &effective(spec)) {
                TtlChange::Set(seconds) => prop_assert!(i64::from(seconds) <= max),
                TtlChange::Keep => prop_assert!(job.ttl.is_none_or(|seconds| i64::from(seconds) <= max)),
                TtlChange::Remove => prop_assert!(false),
            }
        }
    }
}
