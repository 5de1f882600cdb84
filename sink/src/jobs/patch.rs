//! The conditional writes to Jobs: the mark, the TTL that is given back, and deletion.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys,
    policy::cleanup::Propagation,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};

use crate::jobs::plan::Ttl;
use job_handler_shared::kube::error::{ApiError, call};

/// What came of a conditional write.
#[derive(Debug)]
pub enum Written {
    /// Done; the Job as it is now.
    Done(Box<JobSnapshot>),
    /// The Job has changed meanwhile: look again.
    Changed,
    /// There is no such Job any more.
    Gone,
}

/// Marks a Job as harvested and arms its TTL, in one patch that holds only for the version that was looked at.
///
/// # Errors
/// Where the call fails.
pub async fn mark(
    client: &Client,
    job: &JobSnapshot,
    outcome: Outcome,
    result: &str,
    ttl: Ttl,
) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("mark job {}", job.key());
    let patch = Patch::Merge(mark_patch(job, outcome, result, ttl));
    outcome_of(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

/// Gives back the TTL that was put aside, in one patch that holds only for the version that was looked at.
///
/// # Errors
/// Where the call fails.
pub async fn restore(client: &Client, job: &JobSnapshot, ttl: Ttl) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("give job {} its TTL back", job.key());
    let patch = Patch::Merge(guarded(job, &json!({keys::TTL: null}), ttl));
    outcome_of(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

/// Notes on a Job that its result was removed, so that it is not harvested again.
///
/// # Errors
/// Where the call fails.
pub async fn retire(client: &Client, job: &JobSnapshot) -> Result<Written, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("note on job {} that its result goes", job.key());
    let patch = Patch::Merge(guarded(job, &json!({keys::RETIRED: job.uid}), Ttl::Leave));
    outcome_of(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)
}

fn mark_patch(job: &JobSnapshot, outcome: Outcome, result: &str, ttl: Ttl) -> Value {
    guarded(job, &json!({keys::STATUS: outcome.as_str(), keys::RESULTS: result}), ttl)
}

/// A merge patch that carries `metadata.resourceVersion` and `metadata.uid` is refused with 409 where either is not the
/// stored one (`apiserver/pkg/registry/generic/registry/store.go`, `apiserver/pkg/registry/rest/update.go`).
fn guarded(job: &JobSnapshot, annotations: &Value, ttl: Ttl) -> Value {
    let mut patch = json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "annotations": annotations,
        },
    });
    match ttl {
        Ttl::Arm(seconds) => patch["spec"] = json!({"ttlSecondsAfterFinished": seconds}),
        Ttl::Off => patch["spec"] = json!({"ttlSecondsAfterFinished": null}),
        Ttl::Leave => {}
    }
    patch
}

/// Deletes the very version of a Job that was looked at.
///
/// # Errors
/// Where the call fails.
pub async fn delete(
    client: &Client,
    job: &JobSnapshot,
    propagation: Propagation,
    dry_run: bool,
) -> Result<Written, ApiError> {
    // The answer may be the whole Job, of which nothing is asked.
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

/// The Job as the apiserver has it now; nothing where it is gone, or another one has its name.
///
/// # Errors
/// Where the call fails.
pub async fn look(client: &Client, job: &JobSnapshot) -> Result<Option<JobSnapshot>, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let found = call(&format!("get job {}", job.key()), api.get_opt(&job.name)).await?;
    Ok(found.map(|found| JobSnapshot::from(&found)).filter(|found| found.uid == job.uid))
}

/// Sorts the answer of a conditional write.
///
/// # Errors
/// Where the call failed for another reason than that the Job has changed or gone.
pub fn outcome_of(answer: Result<Job, ApiError>) -> Result<Written, ApiError> {
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
    fn the_mark_is_guarded_and_arms_the_ttl() {
        let job = JobSnapshot { uid: "u".into(), resource_version: "7".into(), ..JobSnapshot::default() };
        let patch = mark_patch(&job, Outcome::Completed, "a-results", Ttl::Arm(60));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["spec"]["ttlSecondsAfterFinished"], 60);
        let off = mark_patch(&job, Outcome::Failed, "a-results", Ttl::Off);
        assert!(off["spec"]["ttlSecondsAfterFinished"].is_null() && off["spec"].is_object());
        assert!(mark_patch(&job, Outcome::Failed, "a", Ttl::Leave).get("spec").is_none());
    }
}
