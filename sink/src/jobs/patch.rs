//! Conditional writes to Jobs: marking, restoring a parked TTL, deletion. Each holds only for the version it was decided
//! on.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys,
    kube::{
        error::{ApiError, call},
        raw_reads,
    },
    policy::cleanup::Propagation,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::{PartialObjectMeta, Request},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::jobs::plan::TtlChange;

/// For full Jobs in responses: one can take 7 MiB as JSON, and reconciles and releases are 40 at a time.
static TURNS: Semaphore = Semaphore::const_new(4);

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
    let what = format!("mark job {}", job.key());
    classify_write(merge(client, job, &what, mark_patch(job, outcome, result, ttl)).await)
}

/// Restores the parked TTL.
pub(crate) async fn restore_ttl(
    client: &Client,
    job: &JobSnapshot,
    ttl: TtlChange,
) -> Result<Written, ApiError> {
    let what = format!("restore the TTL of job {}", job.key());
    classify_write(merge(client, job, &what, guarded(job, &json!({keys::TTL: null}), ttl)).await)
}

/// Marks on a Job that its result is removed, so that it is not harvested again.
pub(crate) async fn mark_result_removed(client: &Client, job: &JobSnapshot) -> Result<Written, ApiError> {
    let what = format!("mark the result of job {} as removed", job.key());
    let patch = guarded(job, &json!({keys::RETIRED: job.uid}), TtlChange::Keep);
    classify_write(merge(client, job, &what, patch).await)
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
    let get = |jobs: Request| jobs.get(&job.name, &GetParams::default());
    match answer(client, job, &format!("get job {}", job.key()), get).await {
        Ok(found) => Ok(Some(found).filter(|found| found.uid == job.uid)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Applies a merge patch to a Job; returns the Job as it is now. `what` completes «cannot …».
pub(crate) async fn merge(
    client: &Client,
    job: &JobSnapshot,
    what: &str,
    patch: Value,
) -> Result<JobSnapshot, ApiError> {
    let patch = Patch::Merge(patch);
    answer(client, job, what, |jobs| jobs.patch(&job.name, &PatchParams::default(), &patch)).await
}

/// The Job in the response to a call about the Jobs of a namespace.
async fn answer(
    client: &Client,
    job: &JobSnapshot,
    what: &str,
    request: impl FnOnce(Request) -> Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<JobSnapshot, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let found = async {
        let request = request(Request::new(api.resource_url())).map_err(Error::BuildRequest)?;
        raw_reads::object(client, request, &TURNS, JobSnapshot::from_json).await
    };
    call(what, found).await
}

/// Classifies the response to a conditional write; an error is one other than that the Job has changed or is gone.
pub(crate) fn classify_write(answer: Result<JobSnapshot, ApiError>) -> Result<Written, ApiError> {
    match answer {
        Ok(job) => Ok(Written::Done(Box::new(job))),
        Err(error) if error.is_conflict() => Ok(Written::Changed),
        Err(error) if error.is_not_found() => Ok(Written::Gone),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        io,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use futures::future::join_all;
    use http_body_util::BodyExt;
    use kube::client::Body;

    use super::*;

    /// A client that gets a Job from each path but `/silent`. Whoever reads the response waits for `end`.
    fn client<F: Future<Output = ()> + Send + 'static>(
        end: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Client {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let end = end.clone();
            async move {
                if request.uri().path() == "/silent" {
                    std::future::pending::<()>().await;
                }
                let end = async move {
                    end().await;
                    None::<Result<http::HeaderMap, io::Error>>
                };
                let json = json!({"metadata": {"name": "a", "uid": "u"}}).to_string();
                let body = Body::from(json.into_bytes()).map_err(io::Error::other);
                Ok::<_, Infallible>(http::Response::new(body.with_trailers(end).boxed_unsync()))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn few_responses_are_in_memory_and_silence_holds_up_no_others() {
        let (reading, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = most.clone();
        let client = client(move || {
            let (reading, seen) = (reading.clone(), seen.clone());
            async move {
                seen.fetch_max(reading.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                reading.fetch_sub(1, Ordering::Relaxed);
            }
        });
        let turns = Semaphore::new(2);
        let get = |path: &str| {
            let request = http::Request::get(path).body(Vec::new()).unwrap();
            raw_reads::object(&client, request, &turns, JobSnapshot::from_json)
        };
        let silent = join_all((0..3).map(|_| get("/silent")));
        let others = join_all((0..6).map(|_| get("/")));
        let read = tokio::select! {
            read = silent => read,
            read = others => read,
        };
        assert!(read.len() == 6 && read.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_full_job_in_a_response_takes_a_turn() {
        let free = Arc::new(AtomicUsize::new(4));
        let seen = free.clone();
        let client = client(move || {
            seen.store(TURNS.available_permits(), Ordering::Relaxed);
            std::future::ready(())
        });
        let job = JobSnapshot {
            namespace: "ci".into(),
            name: "a".into(),
            uid: "u".into(),
            ..JobSnapshot::default()
        };
        assert_eq!(get_current(&client, &job).await.unwrap().unwrap().name, "a");
        assert!(free.swap(4, Ordering::Relaxed) < 4);
        let written = restore_ttl(&client, &job, TtlChange::Keep).await.unwrap();
        assert!(matches!(written, Written::Done(now) if now.name == "a"));
        assert!(free.load(Ordering::Relaxed) < 4);
    }

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
