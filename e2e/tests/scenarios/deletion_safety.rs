//! Changes by users between the end of a Job and the end of its harvest: no result is lost silently.

use std::time::Duration;

use job_handler_e2e::wait_for;
use k8s_openapi::api::{batch::v1::Job, core::v1::ConfigMap};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, exclusive_scenario, job, scenario};

const TTL: &str = "job-handler/ttl-seconds-after-finished";

/// Longer than the logs of a node that never answers are waited for.
const HARVEST: Duration = Duration::from_secs(90);

async fn look(fixture: &Fixture, ns: &str, name: &str, what: &str, holds: impl Fn(&Job) -> bool) -> Job {
    let see = || async {
        match fixture.jobs(ns).get(name).await {
            Ok(job) if holds(&job) => Ok(job),
            Ok(job) => Err(format!("{job:?}")),
            Err(error) => Err(error.to_string()),
        }
    };
    wait_for(HARVEST, what, see).await.unwrap()
}

fn is_complete(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Complete" && c.status == "True")
}

fn ttl_of(job: &Job) -> Option<i32> {
    job.spec.as_ref().unwrap().ttl_seconds_after_finished
}

fn deleting(policy: &str) -> Value {
    json!({"results": {}, "cleanup": {"succeededPolicy": policy, "failedPolicy": policy}})
}

#[test]
fn a_policy_changed_to_never_during_the_capture_keeps_the_job() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("keepme").await.unwrap();
        fixture.apply_policy(&ns, "p", deleting("AfterHarvest")).await;
        let play = [("run", "500ms"), ("log-hang", "true")];
        fixture.create(&ns, &job("keepme", &[], &play)).await.unwrap();
        look(fixture, &ns, "keepme", "keepme to complete", is_complete).await;
        fixture.apply_policy(&ns, "p", deleting("Never")).await;
        let marked = |job: &Job| annotation(job, "job-handler/status") == "completed";
        let before = fixture.jobs(&ns).get("keepme").await.unwrap();
        assert!(!marked(&before), "the capture hangs, so that the policy was there before the mark");
        let job = look(fixture, &ns, "keepme", "keepme to be marked", marked).await;
        assert_eq!(ttl_of(&job), None, "Never takes the TTL off");
        // Where the sink would delete it, it does so right after this Event.
        fixture
            .wait("the Event", || async {
                fixture.events(&ns, "JobProcessing", "keepme").await.pop().ok_or("none")
            })
            .await;
        let later = fixture.create(&ns, &job_that("later")).await.unwrap();
        look(fixture, &ns, &later.name_any(), "a later Job to be marked", marked).await;
        assert!(fixture.jobs(&ns).get("keepme").await.unwrap().metadata.deletion_timestamp.is_none());
    });
}

fn job_that(name: &str) -> Value {
    job(name, &[], &[("run", "300ms")])
}

#[test]
fn a_config_map_with_only_the_labels_is_not_a_result() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("forged").await.unwrap();
        fixture.apply_policy(&ns, "p", deleting("AfterHarvest")).await;
        for (job_name, forged, stored) in
            [("one", "whatever", "one-results"), ("two", "two-results", "two-results-UID8")]
        {
            let made = fixture
                .create(&ns, &job(job_name, &[], &[("run", "3s"), ("log", "a line\n")]))
                .await
                .unwrap();
            let uid = made.uid().unwrap();
            let labels = json!({"job-handler/created": "true", "job-handler/job-uid": uid});
            let map: ConfigMap =
                serde_json::from_value(json!({"metadata": {"name": forged, "labels": labels}})).unwrap();
            fixture.config_maps(&ns).create(&PostParams::default(), &map).await.unwrap();
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
fn the_ttl_is_restored_when_no_policy_wants_the_result_any_more() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("aside").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        for (name, seconds) in [("out", 5), ("less", 30)] {
            let mut job = job(name, &[], &[("end", "Hang")]);
            job["spec"]["ttlSecondsAfterFinished"] = json!(3600);
            job["spec"]["activeDeadlineSeconds"] = json!(seconds);
            let made = fixture.create(&ns, &job).await.unwrap();
            assert_eq!((ttl_of(&made), annotation(&made, TTL)), (Some(604_800), "3600"), "{name}");
        }
        // One author opts out; then the policy asks for no results any more, and clamps.
        let out = json!({"metadata": {"labels": {"job-handler/enabled": "false"}}});
        fixture.jobs(&ns).patch("out", &PatchParams::default(), &Patch::Merge(&out)).await.unwrap();
        let back = |seconds| move |job: &Job| ttl_of(job) == Some(seconds) && annotation(job, TTL).is_empty();
        look(fixture, &ns, "out", "the TTL of who opted out", back(3600)).await;
        fixture.apply_policy(&ns, "p", json!({"stamp": {"ttlSecondsAfterFinished": {"max": 1800}}})).await;
        look(fixture, &ns, "less", "a TTL within the maximum", back(1800)).await;
        assert!(fixture.config_maps(&ns).get_opt("out-results").await.unwrap().is_none());
    });
}

#[test]
fn a_finished_job_deleted_before_its_harvest_leaves_a_result() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("victim").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        fixture.create(&ns, &job_that("first")).await.unwrap();
        fixture.wait_result(&ns, "first").await;
        // More Jobs than the sink works on at a time, which end and go while it stands still: of most of them, only the
        // watch's last words are left.
        fixture.pair.sink().stop().unwrap();
        let names: Vec<String> = (0..40).map(|n| format!("victim-{n}")).collect();
        for name in &names {
            fixture.create(&ns, &job_that(name)).await.unwrap();
        }
        for name in &names {
            look(fixture, &ns, name, "a victim to complete", is_complete).await;
            fixture.jobs(&ns).delete(name, &DeleteParams::background()).await.unwrap();
        }
        for name in &names {
            fixture.wait_job_deleted(&ns, name).await;
        }
        fixture.pair.sink().cont().unwrap();
        for name in &names {
            let result = fixture.wait_result(&ns, name).await;
            assert_eq!(result.data.as_ref().unwrap()["status"], "completed");
            let told = fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", name).await.pop().ok_or("none")
                })
                .await;
            assert!(told.note.unwrap().contains(&format!("{name}-results")));
        }
    });
}
