//! The sink stamps Jobs that the webhook missed, without stopping running ones.

use job_handler_shared::keys;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::fixtures::{Fixture, annotation, exclusive_scenario, job, refusal};

#[test]
fn jobs_missed_by_the_webhook_are_stamped_and_others_are_unchanged() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("repaired").await.unwrap();
        let running = [("run", "120s")];
        fixture.create(&ns, &job("before", &[("app", "build")], &running)).await.unwrap();
        let spec = json!({
            "jobSelector": {"matchLabels": {"app": "build"}},
            "stamp": {"ttlSecondsAfterFinished": {"default": 60}, "activeDeadlineSeconds": {"default": 600},
                "backoffLimit": {"default": 0}, "labels": {"team": "x"}},
            "group": {"type": "Labels", "labelKeys": ["app"]},
            "results": {"harvestDeadlineSeconds": 1000},
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        wait_in_force_for_a_second(fixture, &ns).await;
        fixture.pair.webhook(0).kill().unwrap();
        fixture.create(&ns, &job("missed", &[("app", "build")], &running)).await.unwrap();
        fixture.create(&ns, &job("outside", &[("app", "other")], &running)).await.unwrap();
        let kueue = job("kueue", &[("app", "build"), (keys::KUEUE_QUEUE, "q")], &running);
        fixture.create(&ns, &kueue).await.unwrap();
        let repaired = fixture
            .wait("the missed Job to be stamped", || async {
                let job = fixture.jobs(&ns).get("missed").await.unwrap();
                if annotation(&job, keys::STAMPED).is_empty() { Err("not stamped") } else { Ok(job) }
            })
            .await;
        let text = annotation(&repaired, keys::STAMPED).to_owned();
        assert!(text.contains("activeDeadlineSeconds: unset -> 600 (default of JobPolicy"), "{text}");
        assert_eq!(annotation(&repaired, keys::TTL), "60");
        let labels = repaired.metadata.labels.unwrap();
        assert_eq!((labels["team"].as_str(), labels[keys::GROUP].as_str()), ("x", "build"));
        let spec = repaired.spec.unwrap();
        assert_eq!(
            (spec.ttl_seconds_after_finished, spec.active_deadline_seconds, spec.backoff_limit),
            (Some(1000), Some(600), Some(0))
        );
        fixture
            .wait("the Event", || async {
                let events = fixture.events(&ns, keys::REASON_HEALED, "missed").await;
                if events.is_empty() { Err("none") } else { Ok(()) }
            })
            .await;
        for other in ["before", "outside", "kueue"] {
            let unchanged = fixture.jobs(&ns).get(other).await.unwrap();
            assert_eq!(annotation(&unchanged, keys::STAMPED), "", "{other}");
            assert_eq!(unchanged.spec.unwrap().active_deadline_seconds, None, "{other}");
        }
        // The webhook treats the sink's stamps like its own.
        fixture.pair.webhook(0).restart().unwrap();
        fixture.pair.wait_ready(super::fixtures::PATIENCE).await.unwrap();
        let longer = json!({"spec": {"activeDeadlineSeconds": 700}});
        let jobs = fixture.jobs(&ns);
        jobs.patch("missed", &PatchParams::default(), &Patch::Merge(&longer)).await.unwrap();
        let again = jobs.get("missed").await.unwrap();
        assert_eq!(again.spec.as_ref().unwrap().ttl_seconds_after_finished, Some(1000));
        assert_eq!(annotation(&again, keys::TTL), "60");
    });
}

#[test]
fn missed_jobs_over_a_limit_are_queued_newest_first_or_reported() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("repaired-queue").await.unwrap();
        let limit = json!({"name": "few", "maxActiveJobs": 1, "whenFull": "Queue"});
        fixture.apply_policy(&ns, "builds", json!({"limits": [limit]})).await;
        let rejects = fixture.cluster.namespace("repaired-reject").await.unwrap();
        // Missed Jobs are recognized by a missing annotation, so the policy must annotate every Job.
        let limit = json!({"name": "few", "maxActiveJobs": 1});
        let stamp = json!({"backoffLimit": {"default": 2}});
        fixture.apply_policy(&rejects, "builds", json!({"stamp": stamp, "limits": [limit]})).await;
        wait_in_force_for_a_second(fixture, &ns).await;
        wait_in_force_for_a_second(fixture, &rejects).await;
        // No webhook is called: its entries are deleted while the sink is down.
        fixture.pair.sink().kill().unwrap();
        let configurations: kube::Api<
            k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration,
        > = kube::Api::all(fixture.client());
        configurations.delete(keys::LIMITS_CONFIGURATION, &Default::default()).await.unwrap();
        fixture.pair.webhook(0).kill().unwrap();
        for name in ["a", "b"] {
            fixture
                .wait(&format!("{name} to be created without a webhook call"), || async {
                    fixture.create(&ns, &job(name, &[], &[("run", "120s")])).await
                })
                .await;
            let created = fixture.create(&rejects, &job(name, &[], &[("run", "120s")])).await.unwrap();
            let created_at = created.metadata.creation_timestamp.unwrap().0;
            fixture
                .wait("the next second", || async {
                    if jiff::Timestamp::now().as_second() > created_at.as_second() {
                        Ok(())
                    } else {
                        Err("not yet")
                    }
                })
                .await;
        }
        fixture.pair.webhook(0).restart().unwrap();
        fixture.pair.sink().restart().unwrap();
        let newest_is_queued = || async {
            let jobs = fixture.jobs(&ns);
            let (a, b) = (jobs.get("a").await.unwrap(), jobs.get("b").await.unwrap());
            let suspended = |job: &k8s_openapi::api::batch::v1::Job| job.spec.as_ref().unwrap().suspend;
            let queued = annotation(&b, keys::STAMPED).contains("queued: waits for a slot of limit \"few\"");
            match (suspended(&a), suspended(&b), queued) {
                (Some(false), Some(true), true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        };
        fixture.wait("the newest Job to be queued", newest_is_queued).await;
        fixture.jobs(&ns).delete("a", &kube::api::DeleteParams::background()).await.unwrap();
        fixture
            .wait("the queued Job to be released", || async {
                let b = fixture.jobs(&ns).get("b").await.unwrap();
                if b.spec.unwrap().suspend == Some(false) { Ok(()) } else { Err("suspended") }
            })
            .await;
        // Under whenFull Reject both keep running; the excess is reported, and no other Job is admitted.
        let note_of = |name: &'static str| {
            let rejects = rejects.name();
            async move {
                let events = fixture.events(rejects, keys::REASON_HEALED, name).await;
                events.into_iter().find_map(|event| event.note).ok_or("no Event")
            }
        };
        let (a, b) = (
            fixture.wait("the Event of a", || note_of("a")).await,
            fixture.wait("the Event of b", || note_of("b")).await,
        );
        let exceeds = "It exceeds limit \"few\" of JobPolicy";
        assert!(b.contains(exceeds) && b.contains("keeps running"), "{b}");
        assert!(!a.contains(exceeds), "{a}");
        fixture
            .wait("OverLimit to be True", || async {
                let status =
                    fixture.policies(&rejects).get("builds").await.unwrap().status.unwrap_or_default();
                let over = status.conditions.into_iter().find(|c| c.type_ == "OverLimit").ok_or("none")?;
                let expected = "2 active jobs, max allowed: 1";
                if over.status == "True" && over.message.contains(expected) { Ok(()) } else { Err("not yet") }
            })
            .await;
        let (code, message) = refusal(fixture.create(&rejects, &job("c", &[], &[])).await);
        assert!(code == 403 && message.contains("2 active jobs, max allowed: 1"), "{code}: {message}");
        for name in ["a", "b"] {
            let job = fixture.jobs(&rejects).get(name).await.unwrap();
            assert_eq!((job.metadata.deletion_timestamp, job.spec.unwrap().suspend), (None, Some(false)));
            let status = job.status.unwrap_or_default();
            assert!(status.conditions.unwrap_or_default().is_empty(), "{name} finished");
        }
    });
}

/// Waits for the second after the policy came into force: timestamps have seconds, so that only later Jobs are surely
/// newer than the policy.
async fn wait_in_force_for_a_second(fixture: &Fixture, namespace: &str) {
    fixture
        .wait("a second to pass", || async {
            let status = fixture.policies(namespace).get("builds").await.unwrap().status.unwrap();
            let since = status.in_force_since.ok_or("not in force")?.0;
            if jiff::Timestamp::now().as_second() > since.as_second() + 1 { Ok(()) } else { Err("too early") }
        })
        .await;
}
