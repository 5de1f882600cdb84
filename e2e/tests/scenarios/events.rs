//! Events: why a Job is queued and when it was released, that webhook entries of limits were deleted, and that more
//! Jobs are active than a limit allows.

use job_handler_shared::keys;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::fixtures::{annotation, exclusive_scenario, job, scenario};

#[test]
fn events_say_why_a_queued_job_waits_and_that_it_was_released() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("queue-events").await.unwrap();
        let limit = json!({"name": "few", "maxActiveJobs": 1, "whenFull": "Queue"});
        fixture.apply_policy(&ns, "builds", json!({"limits": [limit]})).await;
        fixture.create(&ns, &job("first", &[], &[("run", "8s")])).await.unwrap();
        // Jobs that are created in the same second are ordered by uid.
        fixture
            .wait("the first to have the slot", || async {
                let first = fixture.jobs(&ns).get("first").await.unwrap();
                if first.spec.unwrap().suspend == Some(true) { Err("suspended") } else { Ok(()) }
            })
            .await;
        fixture.create(&ns, &job("second", &[], &[("run", "60s")])).await.unwrap();
        let wait_described = |text: &'static str| {
            let ns = ns.name();
            async move {
                let args = ["describe", "job", "second", "-n", ns];
                fixture
                    .wait(&format!("describe job to show {text}"), || async {
                        let output = fixture.cluster.kubectl(&args).await.map_err(|e| e.to_string())?;
                        if output.contains(text) { Ok(()) } else { Err(output) }
                    })
                    .await;
            }
        };
        wait_described("position 1 in the queue; slot held by first (limit \"few\"").await;
        fixture
            .wait("the policy to count it", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                if status.queued_jobs == Some(1) { Ok(()) } else { Err(format!("{status:?}")) }
            })
            .await;
        wait_described("a slot of limit \"few\" of JobPolicy").await;
        wait_described(keys::REASON_STARTED).await;
        let second = fixture.jobs(&ns).get("second").await.unwrap();
        let stamped = annotation(&second, keys::STAMPED);
        assert!(stamped.contains("waited: ") && !stamped.contains("queued: "), "{stamped}");
        assert_eq!(annotation(&second, keys::QUEUED_AT), "");
    });
}

#[test]
fn a_job_removed_from_the_queue_by_hand_has_its_stamped_annotation_updated() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("unqueued").await.unwrap();
        let limit = json!({"name": "few", "maxActiveJobs": 0, "whenFull": "Queue"});
        fixture.apply_policy(&ns, "builds", json!({"limits": [limit]})).await;
        fixture.create(&ns, &job("waits", &[], &[])).await.unwrap();
        let patch = json!({"metadata": {"annotations": {keys::QUEUED_AT: null}}});
        fixture.jobs(&ns).patch("waits", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        fixture
            .wait("its annotation to be updated", || async {
                let job = fixture.jobs(&ns).get("waits").await.unwrap();
                let stamped = annotation(&job, keys::STAMPED).to_owned();
                if stamped.starts_with("no longer queued: ") { Ok(()) } else { Err(stamped) }
            })
            .await;
    });
}

/// Its author suspended it; its annotations were copied from a Job that was queued elsewhere.
#[test]
fn a_copy_of_a_queued_job_outside_every_policy_stays_suspended() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("copied").await.unwrap();
        let mut copy = job("outside", &[], &[]);
        copy["spec"]["suspend"] = json!(true);
        copy["metadata"]["annotations"] = json!({
            keys::QUEUED_AT: "2026-01-01T00:00:00Z",
            keys::STAMPED: "queued: waits for a slot of limit \"few\" of JobPolicy ci/q",
        });
        fixture.create(&ns, &copy).await.unwrap();
        let outside = fixture.jobs(&ns).get("outside").await.unwrap();
        assert_eq!((annotation(&outside, keys::QUEUED_AT), annotation(&outside, keys::STAMPED)), ("", ""));
        // Nor is a Job released that gets the annotation later. The sink has reconciled it once a later, queued Job is
        // released.
        let queued_at = json!({"metadata": {"annotations": {keys::QUEUED_AT: "2026-01-01T00:00:00Z"}}});
        fixture.jobs(&ns).patch("outside", &PatchParams::default(), &Patch::Merge(&queued_at)).await.unwrap();
        let limit = json!({"name": "few", "maxActiveJobs": 1, "whenFull": "Queue"});
        let spec = json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [limit]});
        fixture.apply_policy(&ns, "builds", spec).await;
        fixture.create(&ns, &job("queued", &[("app", "build")], &[])).await.unwrap();
        fixture
            .wait("the queued one to start", || async {
                let queued = fixture.jobs(&ns).get("queued").await.unwrap();
                let suspended = queued.spec.and_then(|spec| spec.suspend).unwrap_or_default();
                if suspended { Err("suspended") } else { Ok(()) }
            })
            .await;
        let outside = fixture.jobs(&ns).get("outside").await.unwrap();
        assert_eq!(outside.spec.and_then(|spec| spec.suspend), Some(true));
    });
}

#[test]
fn deleted_webhook_entries_of_limits_are_reported_and_restored() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("entries").await.unwrap();
        fixture.apply_policy(&ns, "builds", json!({"limits": [{"name": "few", "maxActiveJobs": 1}]})).await;
        let configurations: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
        configurations.delete(keys::LIMITS_CONFIGURATION, &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the configuration to be back", || async {
                configurations.get(keys::LIMITS_CONFIGURATION).await.map(drop)
            })
            .await;
        let ready = |expected: &'static str| {
            let policies = fixture.policies(&ns);
            async move {
                fixture
                    .wait(&format!("Ready to be {expected}"), || async {
                        let status = policies.get("builds").await.unwrap().status.unwrap_or_default();
                        let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready").unwrap();
                        if ready.status == expected { Ok(ready.message) } else { Err(ready.message) }
                    })
                    .await
            }
        };
        let message = ready("False").await;
        assert!(message.contains("was deleted by someone"), "{message}");
        let events = fixture.events(&ns, "LimitEntryMissing", "builds").await;
        assert_eq!(events.len(), 1, "{events:?}");
        ready("True").await;
    });
}

#[test]
fn jobs_older_than_the_limit_are_reported() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("over").await.unwrap();
        for name in ["a", "b"] {
            fixture.create(&ns, &job(name, &[], &[("run", "60s")])).await.unwrap();
        }
        fixture.apply_policy(&ns, "builds", json!({"limits": [{"name": "few", "maxActiveJobs": 1}]})).await;
        fixture
            .wait("OverLimit", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                let over = status.conditions.into_iter().find(|c| c.type_ == "OverLimit");
                let over = over.ok_or("no condition")?;
                let reported = over.message.contains("2 active jobs, max allowed: 1");
                if over.status == "True" && reported { Ok(()) } else { Err("not reported") }
            })
            .await;
    });
}
