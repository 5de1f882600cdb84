//! Changes by users between the end of a Job and the end of its harvest: no result is lost silently.

use std::time::Duration;

use job_handler_e2e::wait_for;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, exclusive_scenario, job, scenario};

const TTL: &str = "job-handler/ttl-seconds-after-finished";

/// Longer than the shortest harvest deadline and the attempts to read the log of a node that does not answer.
const HARVEST: Duration = Duration::from_secs(240);

async fn wait_job(
    fixture: &Fixture,
    ns: &str,
    name: &str,
    condition: &str,
    holds: impl Fn(&Job) -> bool,
) -> Job {
    let poll = || async {
        match fixture.jobs(ns).get(name).await {
            Ok(job) if holds(&job) => Ok(job),
            Ok(job) => Err(format!("{job:?}")),
            Err(error) => Err(error.to_string()),
        }
    };
    wait_for(HARVEST, condition, poll).await.unwrap()
}

fn is_complete(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Complete" && c.status == "True")
}

fn ttl_of(job: &Job) -> Option<i32> {
    job.spec.as_ref().unwrap().ttl_seconds_after_finished
}

fn policy_spec(policy: &str) -> Value {
    json!({"results": {"harvestDeadlineSeconds": 60}, "cleanup": {"succeededPolicy": policy, "failedPolicy": policy}})
}

#[test]
fn a_policy_changed_to_never_during_the_capture_keeps_the_job() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("keepme").await.unwrap();
        fixture.apply_policy(&ns, "p", policy_spec("AfterHarvest")).await;
        let simulation = [("run", "500ms"), ("log-hang", "true")];
        fixture.create(&ns, &job("keepme", &[], &simulation)).await.unwrap();
        wait_job(fixture, &ns, "keepme", "keepme to complete", is_complete).await;
        fixture.apply_policy(&ns, "p", policy_spec("Never")).await;
        let is_annotated = |job: &Job| annotation(job, "job-handler/status") == "completed";
        let before = fixture.jobs(&ns).get("keepme").await.unwrap();
        assert!(
            !is_annotated(&before),
            "the capture hangs, so that the policy changed before the annotation"
        );
        let job = wait_job(fixture, &ns, "keepme", "keepme to be annotated", is_annotated).await;
        assert_eq!(ttl_of(&job), None, "Never removes the TTL");
        // A deletion would follow this Event immediately.
        fixture
            .wait("the Event", || async {
                fixture.events(&ns, "JobProcessing", "keepme").await.pop().ok_or("none")
            })
            .await;
        let later = fixture.create(&ns, &short_job("later")).await.unwrap();
        wait_job(fixture, &ns, &later.name_any(), "a later Job to be annotated", is_annotated).await;
        assert!(fixture.jobs(&ns).get("keepme").await.unwrap().metadata.deletion_timestamp.is_none());
    });
}

fn short_job(name: &str) -> Value {
    job(name, &[], &[("run", "300ms")])
}

#[test]
fn a_config_map_with_only_the_labels_is_not_a_result() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("forged").await.unwrap();
        fixture.apply_policy(&ns, "p", policy_spec("AfterHarvest")).await;
        for (job_name, forged, stored) in
            [("one", "whatever", "one-results"), ("two", "two-results", "two-results-UID8")]
        {
            let created = fixture
                .create(&ns, &job(job_name, &[], &[("run", "3s"), ("log", "a line\n")]))
                .await
                .unwrap();
            let uid = created.uid().unwrap();
            let labels = json!({"job-handler/created": "true", "job-handler/job-uid": uid});
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": forged, "labels": labels}});
            fixture.create_past_admission_policy(&ns, &map).await;
            fixture.wait_job_deleted(&ns, job_name).await;
            let stored = stored.replace("UID8", &uid[..8]);
            let result = fixture.config_maps(&ns).get(&stored).await.unwrap();
            assert!(result.data.unwrap()["logs"].contains("a line"), "{job_name}");
            fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", job_name).await.pop().ok_or("none")
                })
                .await;
        }
    });
}

#[test]
fn the_ttl_is_restored_when_no_policy_requests_the_result_any_more() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("restored-ttl").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        for (name, seconds) in [("opted-out", 5), ("clamped", 30)] {
            let mut job = job(name, &[], &[("end", "Hang")]);
            job["spec"]["ttlSecondsAfterFinished"] = json!(3600);
            job["spec"]["activeDeadlineSeconds"] = json!(seconds);
            let created = fixture.create(&ns, &job).await.unwrap();
            assert_eq!((ttl_of(&created), annotation(&created, TTL)), (Some(604_800), "3600"), "{name}");
        }
        // One Job opts out; then the policy requests no results and sets a maximum.
        let opt_out = json!({"metadata": {"labels": {"job-handler/enabled": "false"}}});
        fixture.jobs(&ns).patch("opted-out", &PatchParams::default(), &Patch::Merge(&opt_out)).await.unwrap();
        let restored =
            |seconds| move |job: &Job| ttl_of(job) == Some(seconds) && annotation(job, TTL).is_empty();
        wait_job(fixture, &ns, "opted-out", "the TTL of the Job that opted out", restored(3600)).await;
        fixture.apply_policy(&ns, "p", json!({"stamp": {"ttlSecondsAfterFinished": {"max": 1800}}})).await;
        wait_job(fixture, &ns, "clamped", "a TTL within the maximum", restored(1800)).await;
        assert!(fixture.config_maps(&ns).get_opt("opted-out-results").await.unwrap().is_none());
    });
}

#[test]
fn a_finished_job_deleted_before_its_harvest_leaves_a_result() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("deleted").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        fixture.create(&ns, &short_job("first")).await.unwrap();
        fixture.wait_result(&ns, "first").await;
        // More Jobs than the sink reconciles concurrently finish and are deleted while it is paused: for most of them,
        // it has only the watch events.
        fixture.pair.sink().stop().unwrap();
        let names: Vec<String> = (0..40).map(|n| format!("deleted-{n}")).collect();
        for name in &names {
            fixture.create(&ns, &short_job(name)).await.unwrap();
        }
        for name in &names {
            wait_job(fixture, &ns, name, "the Job to complete", is_complete).await;
            fixture.jobs(&ns).delete(name, &DeleteParams::background()).await.unwrap();
        }
        for name in &names {
            fixture.wait_job_deleted(&ns, name).await;
        }
        fixture.pair.sink().cont().unwrap();
        for name in &names {
            let result = fixture.wait_result(&ns, name).await;
            assert_eq!(result.data.as_ref().unwrap()["status"], "completed");
            let event = fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", name).await.pop().ok_or("none")
                })
                .await;
            assert!(event.note.unwrap().contains(&format!("{name}-results")));
        }
    });
}
