//! What counts against a limit: reused names, deletions, suspensions, several limits at once, with the timing of the
//! real Job controller.

use std::time::Duration;

use job_handler_shared::policy::spec::ClusterJobPolicy;
use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Pod, ResourceQuota},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, refusal, scenario};

/// An attempt without a Job expires after 20 s, or 60 s while the webhook has not run for a minute; with slack for a busy
/// machine.
const EXPIRY: Duration = Duration::from_secs(150);
const LIMIT_REACHED: &str = "concurrent job limit reached: ";

fn limit(max: u32) -> Value {
    json!({"limits": [{"name": "few", "maxActiveJobs": max}]})
}

/// A Job that runs until it is deleted or suspended.
fn endless(name: &str) -> Value {
    job(name, &[], &[("end", "Hang")])
}

/// A Job whose pods terminate only when they are deleted by force.
fn job_with_slow_termination(name: &str) -> Value {
    job(name, &[], &[("end", "Hang"), ("termination-delay", "1h")])
}

async fn wait_cluster_policy_ready(fixture: &Fixture, name: &str) {
    let policies: Api<ClusterJobPolicy> = Api::all(fixture.client());
    fixture
        .wait(&format!("ClusterJobPolicy {name} to be Ready"), || async {
            let status = policies.get(name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
        })
        .await;
}

/// A cluster limit that counts only the Jobs of these namespaces, so that other scenarios are not affected.
async fn create_cluster_limit(fixture: &Fixture, name: &str, namespaces: &[&str], max: u32) {
    let policies: Api<ClusterJobPolicy> = Api::all(fixture.client());
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name},
        "spec": {
            "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces}]},
            "limits": [{"name": "all", "maxActiveJobs": max, "scope": "Cluster"}],
        },
    });
    policies.patch(name, &PatchParams::apply("scenario").force(), &Patch::Apply(&policy)).await.unwrap();
    wait_cluster_policy_ready(fixture, name).await;
}

async fn delete_cluster_limit(fixture: &Fixture, name: &str) {
    Api::<ClusterJobPolicy>::all(fixture.client()).delete(name, &DeleteParams::default()).await.unwrap();
}

/// Waits until a pod of the Job runs.
async fn wait_running(fixture: &Fixture, namespace: &str, name: &str) {
    let running = job_handler_e2e::cluster::jobs::in_phase("Running");
    fixture.cluster.wait_pod_of(namespace, name, super::fixtures::PATIENCE, running).await.unwrap();
}

async fn force_delete_pods(fixture: &Fixture, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(fixture.client(), namespace);
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        match pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
            // It was deleted meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other.unwrap()),
        }
    }
}

async fn wait_slot_free(fixture: &Fixture, namespace: &str, name: &str) {
    fixture.wait("the slot to be free", || async { fixture.create(namespace, &endless(name)).await }).await;
}

async fn assert_refused(fixture: &Fixture, namespace: &str, name: &str) -> String {
    let (code, message) = refusal(fixture.create(namespace, &endless(name)).await);
    assert!(code == 403 && message.contains(LIMIT_REACHED), "{code}: {message}");
    message
}

#[test]
fn repeated_creates_of_one_name_get_conflicts_not_refusals() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("loop").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        fixture.create(&ns, &endless("one")).await.unwrap();
        // As often as a controller that retries without a pause.
        for _ in 0..20 {
            let (code, message) = refusal(fixture.create(&ns, &endless("one")).await);
            assert_eq!(code, 409, "{message}");
        }
        assert_refused(fixture, &ns, "other").await;
    });
}

#[test]
fn a_job_deleted_and_recreated_keeps_its_slot() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("again").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let mut uids = Vec::new();
        for _ in 0..4 {
            let created = fixture
                .wait("the name to be free", || async {
                    match fixture.create(&ns, &endless("one")).await {
                        // Only while the earlier Job is being deleted.
                        Err(kube::Error::Api(status)) => {
                            assert_eq!(status.code, 409, "{}", status.message);
                            Err(status.message.clone())
                        }
                        other => Ok(other.unwrap()),
                    }
                })
                .await;
            assert!(!uids.contains(&created.uid()), "it is a new Job");
            uids.push(created.uid());
            assert_refused(fixture, &ns, "other").await;
            fixture.jobs(&ns).delete("one", &DeleteParams::foreground()).await.unwrap();
        }
    });
}

#[test]
fn a_job_being_deleted_counts_until_its_pods_are_gone() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("deleting").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        fixture.create(&ns, &job_with_slow_termination("one")).await.unwrap();
        wait_running(fixture, &ns, "one").await;
        fixture.jobs(&ns).delete("one", &DeleteParams::foreground()).await.unwrap();
        fixture
            .wait("its pod to be terminating", || async {
                let pods = fixture.cluster.pods_of(&ns, "one").await.map_err(|e| e.to_string())?;
                let terminating =
                    !pods.is_empty() && pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_some());
                if terminating { Ok(()) } else { Err(format!("{} pods", pods.len())) }
            })
            .await;
        let message = assert_refused(fixture, &ns, "two").await;
        assert!(message.contains("1 running; oldest: one "), "{message}");
        force_delete_pods(fixture, &ns).await;
        wait_slot_free(fixture, &ns, "two").await;
    });
}

#[test]
fn a_job_that_is_suspended_again_counts_until_its_pods_are_gone() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("suspended").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        fixture.create(&ns, &job_with_slow_termination("one")).await.unwrap();
        wait_running(fixture, &ns, "one").await;
        let set = async |suspend: bool| {
            let change = Patch::Merge(json!({"spec": {"suspend": suspend}}));
            fixture.jobs(&ns).patch("one", &PatchParams::default(), &change).await
        };
        set(true).await.unwrap();
        assert_refused(fixture, &ns, "two").await;
        fixture
            .wait("its pod to be terminating", || async {
                let status = fixture.jobs(&ns).get("one").await.map_err(|e| e.to_string())?.status;
                let terminating = status.and_then(|status| status.terminating);
                if terminating == Some(1) { Ok(()) } else { Err(format!("{terminating:?}")) }
            })
            .await;
        assert_refused(fixture, &ns, "two").await;
        // It still holds its slot, so it may be resumed.
        set(false).await.unwrap();
        set(true).await.unwrap();
        force_delete_pods(fixture, &ns).await;
        wait_slot_free(fixture, &ns, "two").await;
        assert_eq!(refusal(set(false).await).0, 403);
    });
}

#[test]
fn a_deleted_namespace_frees_its_slots_of_cluster_limits() {
    scenario(|fixture| async move {
        let (deleted, other) = (
            fixture.cluster.namespace("deleted").await.unwrap(),
            fixture.cluster.namespace("other").await.unwrap(),
        );
        let policy = format!("over-{}", deleted.name());
        create_cluster_limit(fixture, &policy, &[deleted.name(), other.name()], 1).await;
        fixture.create(&deleted, &job_with_slow_termination("one")).await.unwrap();
        wait_running(fixture, &deleted, "one").await;
        let message = assert_refused(fixture, &other, "two").await;
        assert!(message.contains(&format!("oldest: {}/one", deleted.name())), "{message}");
        deleted.delete().await.unwrap();
        let (code, message) = refusal(
            fixture
                .wait("the namespace to be terminating", || async {
                    match fixture.create(&deleted, &endless("three")).await {
                        Err(kube::Error::Api(status)) if status.message.contains("being terminated") => {
                            Ok(Err::<Job, _>(kube::Error::Api(status)))
                        }
                        other => Err(format!("{other:?}")),
                    }
                })
                .await,
        );
        assert_eq!(code, 403, "{message}");
        // The namespace's deletion may already have deleted its Job, but the pod still exists.
        force_delete_pods(fixture, &deleted).await;
        wait_slot_free(fixture, &other, "two").await;
        delete_cluster_limit(fixture, &policy).await;
    });
}

#[test]
fn a_limit_lowered_below_its_use_deletes_no_job_and_admits_none() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("lowered").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(3)).await;
        for name in ["a", "b", "c"] {
            fixture.create(&ns, &endless(name)).await.unwrap();
        }
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let message = assert_refused(fixture, &ns, "d").await;
        assert!(message.contains("3 active jobs, max allowed: 1"), "{message}");
        for name in ["a", "b"] {
            fixture.jobs(&ns).delete(name, &DeleteParams::background()).await.unwrap();
            fixture.wait_job_deleted(&ns, name).await;
        }
        let message = assert_refused(fixture, &ns, "d").await;
        assert!(message.contains("1 active jobs, max allowed: 1"), "{message}");
        fixture.apply_policy(&ns, "builds", limit(2)).await;
        fixture.create(&ns, &endless("d")).await.unwrap();
        assert_refused(fixture, &ns, "e").await;
    });
}

#[test]
fn a_refused_cron_job_names_the_policy_and_runs_once_a_slot_is_free() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("cron").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        fixture.create(&ns, &endless("holder")).await.unwrap();
        let crons: Api<CronJob> = Api::namespaced(fixture.client(), &ns);
        let cron = serde_json::from_value(json!({
            "metadata": {"name": "often"},
            "spec": {"schedule": "* * * * *", "concurrencyPolicy": "Forbid", "jobTemplate": {
                "spec": {"template": {
                    "metadata": {"annotations": {"e2e.job-handler.io/end": "Hang"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}}}},
        }))
        .unwrap();
        crons.create(&PostParams::default(), &cron).await.unwrap();
        let patience = Duration::from_secs(180);
        let event = job_handler_e2e::wait_for(patience, "the CronJob's Event", || async {
            let args = ["describe", "cronjob", "often", "-n", &ns];
            let output = fixture.cluster.kubectl(&args).await.map_err(|error| error.to_string())?;
            let line = output.lines().find(|line| line.contains("JobRefused"));
            line.map(str::to_owned).ok_or(output)
        });
        let event = event.await.unwrap();
        for text in [LIMIT_REACHED, "limit \"few\" of JobPolicy", "oldest: holder "] {
            assert!(event.contains(text), "{text:?} is missing: {event}");
        }
        fixture.jobs(&ns).delete("holder", &DeleteParams::background()).await.unwrap();
        let recovered = job_handler_e2e::wait_for(patience, "a Job of the CronJob", || async {
            let all = fixture.jobs(&ns).list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let own = all.items.into_iter().find(|job| job.name_any().starts_with("often-"));
            own.ok_or("none yet".to_owned())
        });
        recovered.await.unwrap();
        assert_refused(fixture, &ns, "other").await;
        crons.delete("often", &DeleteParams::background()).await.unwrap();
    });
}

/// The test completes these Jobs itself, so that it knows the exact moment.
#[test]
fn a_slot_is_free_as_soon_as_its_job_has_finished() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("next").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        for n in 0..25 {
            let mut one = job(&format!("j{n}"), &[], &[]);
            one["spec"]["managedBy"] = json!("e2e.job-handler.io/test");
            // A refusal fails the test: the previous Job is Complete.
            fixture.create(&ns, &one).await.unwrap();
            if n % 5 == 0 {
                assert_refused(fixture, &ns, "early").await;
            }
            let now = jiff::Timestamp::now().to_string();
            let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Test", "lastTransitionTime": now});
            let status = json!({"status": {
                "startTime": now, "completionTime": now,
                "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            }});
            let name = format!("j{n}");
            fixture
                .jobs(&ns)
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                .await
                .unwrap();
        }
    });
}

#[test]
fn two_limits_of_a_policy_both_apply_and_the_refusing_one_is_named() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("both").await.unwrap();
        let spec = json!({
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [
                {"name": "few", "maxActiveJobs": 3},
                {"name": "two-each", "maxActiveJobs": 2, "scope": "Group"},
            ],
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        let create = async |name: &str, id: &str| {
            fixture.create(&ns, &job(name, &[("id", id)], &[("end", "Hang")])).await
        };
        create("a", "1").await.unwrap();
        create("b", "1").await.unwrap();
        let (code, message) = refusal(create("c", "1").await);
        assert!(code == 403 && message.contains("limit \"two-each\""), "{message}");
        // The Job refused by the group's limit takes no slot of the namespace.
        create("d", "2").await.unwrap();
        let (code, message) = refusal(create("e", "2").await);
        assert!(code == 403 && message.contains("limit \"few\""), "{message}");
        assert!(message.contains("3 active jobs, max allowed: 3"), "{message}");
    });
}

#[test]
fn cluster_and_namespace_limits_both_apply_and_neither_counts_jobs_refused_by_the_other() {
    scenario(|fixture| async move {
        let (a, b) =
            (fixture.cluster.namespace("a").await.unwrap(), fixture.cluster.namespace("b").await.unwrap());
        let policy = format!("over-{}", a.name());
        create_cluster_limit(fixture, &policy, &[a.name(), b.name()], 3).await;
        fixture.apply_policy(&a, "builds", limit(2)).await;
        fixture.create(&a, &endless("a1")).await.unwrap();
        fixture.create(&b, &endless("b1")).await.unwrap();
        fixture.create(&b, &endless("b2")).await.unwrap();
        // The cluster is full, the namespace is not.
        let message = assert_refused(fixture, &a, "a2").await;
        assert!(message.contains("limit \"all\" of ClusterJobPolicy"), "{message}");
        fixture.jobs(&b).delete("b1", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&b, "b1").await;
        // The namespace is full, the cluster is not: the refused Job took no slot.
        fixture.create(&a, &endless("a2")).await.unwrap();
        fixture.jobs(&b).delete("b2", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&b, "b2").await;
        for _ in 0..3 {
            let message = assert_refused(fixture, &a, "a3").await;
            assert!(message.contains("limit \"few\" of JobPolicy"), "{message}");
        }
        fixture.create(&b, &endless("b3")).await.unwrap();
        assert_refused(fixture, &b, "b4").await;
        delete_cluster_limit(fixture, &policy).await;
    });
}

#[test]
fn a_job_under_two_policies_takes_one_slot_of_each() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("twice").await.unwrap();
        fixture.apply_policy(&ns, "wide", limit(3)).await;
        let narrow = json!({
            "jobSelector": {"matchLabels": {"app": "build"}},
            "limits": [{"name": "builds", "maxActiveJobs": 2}],
        });
        fixture.apply_policy(&ns, "narrow", narrow).await;
        let build = |name: &str| job(name, &[("app", "build")], &[("end", "Hang")]);
        // The apiserver calls the webhook once per policy, concurrently.
        fixture.create(&ns, &build("a")).await.unwrap();
        fixture.create(&ns, &build("b")).await.unwrap();
        let (code, message) = refusal(fixture.create(&ns, &build("c")).await);
        assert!(code == 403 && message.contains("JobPolicy") && message.contains("/narrow"), "{message}");
        fixture.create(&ns, &endless("d")).await.unwrap();
        let message = assert_refused(fixture, &ns, "e").await;
        assert!(message.contains("/wide"), "{message}");
    });
}

#[test]
fn a_job_denied_by_a_quota_frees_its_slot() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("denied").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let quotas: Api<ResourceQuota> = Api::namespaced(fixture.client(), &ns);
        let quota = serde_json::from_value(json!({
            "metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}},
        }))
        .unwrap();
        quotas.create(&PostParams::default(), &quota).await.unwrap();
        // The quota denies, until a refusal states a time that needs a webhook which knows the other webhooks: in its first
        // minute it states up to 60 s.
        let stated = job_handler_e2e::wait_for(EXPIRY, "a hold of at most 20 s", || async {
            let name = match fixture.create(&ns, &endless("a")).await {
                Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => "b",
                Err(kube::Error::Api(status)) if status.code == 403 => "a",
                other => return Err(format!("{other:?}")),
            };
            let (_, message) = refusal(fixture.create(&ns, &endless(name)).await);
            match free_within(&message) {
                Some(seconds) if (17..=20).contains(&seconds) => Ok(message),
                _ => Err(message),
            }
        });
        let message = stated.await.unwrap();
        assert!(message.contains("1 slot held by a create that was denied after admission"), "{message}");
        quotas.delete("none", &DeleteParams::default()).await.unwrap();
        let admitted = job_handler_e2e::wait_for(EXPIRY, "a free slot", || async {
            fixture.create(&ns, &endless("b")).await.map_err(|error| error.to_string())
        });
        admitted.await.unwrap();
        assert_refused(fixture, &ns, "a").await;
    });
}

/// The seconds after which a refusal says that a slot is free.
fn free_within(message: &str) -> Option<u64> {
    message.split_once("free within ")?.1.split(' ').next()?.parse().ok()
}
