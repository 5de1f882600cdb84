//! Conditional writes to Jobs: marking, restoring a parked TTL, deletion. Each holds only for the version it was decided
//! on.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys,
    kube::error::{ApiError, call},
    policy::cleanup::Propagation,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};

use crate::jobs::plan::TtlChange;

/// The result of a conditional write.
#[derive(Debug)]
pub(crate) enum Written {
    /// Written; the Job as it is now.
    Done(Box<JobSnapshot>),
    /// The Job has changed: read it again.
    Changed,
    /// The Job no longer exists.
    Gone,
}

/// Marks a Job as harvested and sets its TTL, in one patch.
pub(crate) async fn mark_harvested(
    client: &Client,
    job: &JobSnapshot,
    outcome: Outcome,
    result: &str,
    ttl: TtlChange,
) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("mark job {}", job.key());
    let patch = Patch::Merge(mark_patch(job, outcome, result, ttl));
    classify_write(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

/// Restores the parked TTL.
pub(crate) async fn restore_ttl(
    client: &Client,
    job: &JobSnapshot,
    ttl: TtlChange,
) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("restore the TTL of job {}", job.key());
    let patch = Patch::Merge(guarded(job, &json!({keys::TTL: null}), ttl));
    classify_write(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

/// Marks on a Job that its result is removed, so that it is not harvested again.
pub(crate) async fn mark_result_removed(client: &Client, job: &JobSnapshot) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("mark the result of job {} as removed", job.key());
    let patch = Patch::Merge(guarded(job, &json!({keys::RETIRED: job.uid}), TtlChange::Keep));
    classify_write(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

fn mark_patch(job: &JobSnapshot, outcome: Outcome, result: &str, ttl: TtlChange) -> Value {
    guarded(job, &json!({keys::STATUS: outcome.as_str(), keys::RESULTS: result}), ttl)
}

/// The apiserver rejects a merge patch with 409 if its `metadata.resourceVersion` or `metadata.uid` is not the stored one
/// (`apiserver/pkg/registry/generic/registry/store.go`, `apiserver/pkg/registry/rest/update.go`).
fn guarded(job: &JobSnapshot, annotations: &Value, ttl: TtlChange) -> Value {
    let mut patch = json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "annotations": annotations,
        },
    });
    match ttl {
        TtlChange::Set(seconds) => patch["spec"] = json!({"ttlSecondsAfterFinished": seconds}),
        TtlChange::Remove => patch["spec"] = json!({"ttlSecondsAfterFinished": null}),
        TtlChange::Keep => {}
    }
    patch
}

/// Deletes a Job, if it has not changed.
pub(crate) async fn delete(
    client: &Client,
    job: &JobSnapshot,
    propagation: Propagation,
    dry_run: bool,
) -> Result<Written, ApiError> {
    // Metadata only: the response may be the full Job, which is not needed.
    let api = Api::<PartialObjectMeta<Job>>::namespaced(client.clone(), &job.namespace);
    let params = DeleteParams {
        dry_run,
        propagation_policy: Some(match propagation {
            Propagation::Foreground => PropagationPolicy::Foreground,
            Propagation::Background => PropagationPolicy::Background,
        }),
        preconditions: Some(Preconditions {
            uid: Some(job.uid.clone()),
            resource_version: Some(job.resource_version.clone()),
        }),
        ..DeleteParams::default()
    };
    match call(&format!("delete job {}", job.key()), api.delete(&job.name, &params)).await {
        Ok(_) => Ok(Written::Done(Box::new(job.clone()))),
        Err(error) if error.is_conflict() => Ok(Written::Changed),
        Err(error) if error.is_not_found() => Ok(Written::Gone),
        Err(error) => Err(error),
    }
}

/// Reads the current version of a Job; none if it is deleted, also if another Job has its name now.
pub(crate) async fn get_current(client: &Client, job: &JobSnapshot) -> Result<Option<JobSnapshot>, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let found = call(&format!("get job {}", job.key()), api.get_opt(&job.name)).await?;
    Ok(found.map(|found| JobSnapshot::from(&found)).filter(|found| found.uid == job.uid))
}

/// Classifies the response to a conditional write; an error is one other than that the Job has changed or is gone.
pub(crate) fn classify_write(answer: Result<Job, ApiError>) -> Result<Written, ApiError> {
    match answer {
        Ok(job) => Ok(Written::Done(Box::new(JobSnapshot::from(&job)))),
        Err(error) if error.is_conflict() => Ok(Written::Changed),
        Err(error) if error.is_not_found() => Ok(Written::Gone),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_conditional_and_sets_the_ttl() {
        let job = JobSnapshot { uid: "u".into(), resource_version: "7".into(), ..JobSnapshot::default() };
        let patch = mark_patch(&job, Outcome::Completed, "a-results", TtlChange::Set(60));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["spec"]["ttlSecondsAfterFinished"], 60);
        let removed = mark_patch(&job, Outcome::Failed, "a-results", TtlChange::Remove);
        assert!(removed["spec"]["ttlSecondsAfterFinished"].is_null() && removed["spec"].is_object());
        assert!(mark_patch(&job, Outcome::Failed, "a", TtlChange::Keep).get("spec").is_none());
    }
}
