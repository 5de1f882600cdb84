//! Jobs that the webhook missed are stamped by the sink, without ending what runs.

use job_handler_shared::keys;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::world::{World, annotation, job, lonely_scenario};

#[test]
fn jobs_that_the_webhook_missed_are_stamped_and_others_left_alone() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("healed").await.unwrap();
        let running = [("run", "120s")];
        world.create(&ns, &job("before", &[("app", "build")], &running)).await.unwrap();
        let spec = json!({
            "jobSelector": {"matchLabels": {"app": "build"}},
            "stamp": {"ttlSecondsAfterFinished": {"default": 60}, "activeDeadlineSeconds": {"default": 600},
                "backoffLimit": {"default": 0}, "labels": {"team": "x"}},
            "group": {"type": "Labels", "labelKeys": ["app"]},
            "results": {"harvestDeadlineSeconds": 1000},
        });
        world.policy(&ns, "builds", spec).await;
        in_force_for_a_second(world, &ns).await;
        world.pair.webhook(0).kill().unwrap();
        world.create(&ns, &job("missed", &[("app", "build")], &running)).await.unwrap();
        world.create(&ns, &job("outside", &[("app", "other")], &running)).await.unwrap();
        let kueue = job("kueue", &[("app", "build"), (keys::KUEUE_QUEUE, "q")], &running);
        world.create(&ns, &kueue).await.unwrap();
        let healed = world
            .wait("the missed one to be stamped", || async {
                let job = world.jobs(&ns).get("missed").await.unwrap();
                if annotation(&job, keys::STAMPED).is_empty() { Err("not stamped") } else { Ok(job) }
            })
            .await;
        let text = annotation(&healed, keys::STAMPED).to_owned();
        assert!(text.contains("activeDeadlineSeconds: unset -> 600 (default of JobPolicy"), "{text}");
        assert_eq!(annotation(&healed, keys::TTL), "60");
        let labels = healed.metadata.labels.unwrap();
        assert_eq!((labels["team"].as_str(), labels[keys::GROUP].as_str()), ("x", "build"));
        let spec = healed.spec.unwrap();
        assert_eq!(
            (spec.ttl_seconds_after_finished, spec.active_deadline_seconds, spec.backoff_limit),
            (Some(1000), Some(600), Some(0))
        );
        world
            .wait("the Event", || async {
                let events = world.events(&ns, keys::REASON_HEALED, "missed").await;
                if events.is_empty() { Err("none") } else { Ok(()) }
            })
            .await;
        for other in ["before", "outside", "kueue"] {
            let there = world.jobs(&ns).get(other).await.unwrap();
            assert_eq!(annotation(&there, keys::STAMPED), "", "{other}");
            assert_eq!(there.spec.unwrap().active_deadline_seconds, None, "{other}");
        }
        // The webhook takes the sink's word for its own.
        world.pair.webhook(0).restart().unwrap();
        world.pair.wait_ready(super::world::PATIENCE).await.unwrap();
        let longer = json!({"spec": {"activeDeadlineSeconds": 700}});
        let jobs = world.jobs(&ns);
        jobs.patch("missed", &PatchParams::default(), &Patch::Merge(&longer)).await.unwrap();
        let again = jobs.get("missed").await.unwrap();
        assert_eq!(again.spec.as_ref().unwrap().ttl_seconds_after_finished, Some(1000));
        assert_eq!(annotation(&again, keys::TTL), "60");
    });
}

#[test]
fn missed_jobs_over_a_limit_that_queues_wait_newest_first() {
    lonely_scenario(async |world| {
        let ns = world.cluster.namespace("healq").await.unwrap();
        let limit = json!({"name": "few", "maxActiveJobs": 1, "whenFull": "Queue"});
        world.policy(&ns, "builds", json!({"limits": [limit]})).await;
        in_force_for_a_second(world, &ns).await;
        // Nobody is asked: somebody took the entries away while the sink was away too.
        world.pair.sink().kill().unwrap();
        let configurations: kube::Api<
            k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration,
        > = kube::Api::all(world.client());
        configurations.delete(keys::LIMITS_CONFIGURATION, &Default::default()).await.unwrap();
        world.pair.webhook(0).kill().unwrap();
        for name in ["a", "b"] {
            world
                .wait(&format!("{name} to be created by nobody's leave"), || async {
                    world.create(&ns, &job(name, &[], &[("run", "120s")])).await
                })
                .await;
            let made = world.jobs(&ns).get(name).await.unwrap().metadata.creation_timestamp.unwrap().0;
            world
                .wait("the next second", || async {
                    if jiff::Timestamp::now().as_second() > made.as_second() {
                        Ok(())
                    } else {
                        Err("not yet")
                    }
                })
                .await;
        }
        world.pair.webhook(0).restart().unwrap();
        world.pair.sink().restart().unwrap();
        let state = || async {
            let jobs = world.jobs(&ns);
            let (a, b) = (jobs.get("a").await.unwrap(), jobs.get("b").await.unwrap());
            let suspended = |job: &k8s_openapi::api::batch::v1::Job| job.spec.as_ref().unwrap().suspend;
            let queued = annotation(&b, keys::STAMPED).contains("queued: waits for a slot of limit \"few\"");
            match (suspended(&a), suspended(&b), queued) {
                (Some(false), Some(true), true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        };
        world.wait("the newest to wait", state).await;
        world.jobs(&ns).delete("a", &kube::api::DeleteParams::background()).await.unwrap();
        world
            .wait("it to be started", || async {
                let b = world.jobs(&ns).get("b").await.unwrap();
                if b.spec.unwrap().suspend == Some(false) { Ok(()) } else { Err("suspended") }
            })
            .await;
    });
}

/// A policy is in force since a certain second; only Jobs of later seconds are surely younger.
async fn in_force_for_a_second(world: &World, namespace: &str) {
    world
        .wait("a second to pass", || async {
            let status = world.policies(namespace).get("builds").await.unwrap().status.unwrap();
            let since = status.in_force_since.ok_or("not in force")?.0;
            if jiff::Timestamp::now().as_second() > since.as_second() + 1 { Ok(()) } else { Err("too early") }
        })
        .await;
}
