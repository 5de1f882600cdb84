//! Refusals by limits: message, status code, Events, duplicates, scopes, un-suspending.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::fixtures::{job, refusal, scenario};

fn limit(max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": "build"}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

#[test]
fn a_job_over_the_limit_is_refused_with_a_reason_until_a_slot_is_free() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("limit").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(2)).await;
        for name in ["a", "b"] {
            fixture.create(&ns, &job(name, &[("app", "build")], &[("run", "3s")])).await.unwrap();
        }
        let (code, message) = refusal(fixture.create(&ns, &job("c", &[("app", "build")], &[])).await);
        assert_eq!(code, 403);
        let expected = format!(
            "denied the request: concurrent job limit reached: 2 active jobs, max allowed: 2 \
             (limit \"few\" of JobPolicy {}/builds, counted per namespace; ",
            ns.name()
        );
        assert!(message.contains(&expected), "{message}");
        assert!(
            message.contains("oldest: ") && message.contains("a ") && message.contains("b "),
            "{message}"
        );
        // The limit does not apply to other Jobs.
        fixture.create(&ns, &job("other", &[("app", "other")], &[])).await.unwrap();
        // A free slot can be used immediately.
        fixture
            .wait("a slot", || async { fixture.create(&ns, &job("c", &[("app", "build")], &[])).await })
            .await;
    });
}

#[test]
fn a_refusal_has_events_on_the_policy_the_owner_and_the_name() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("refusal-events").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(0)).await;
        let cron = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {
                "metadata": {"labels": {"app": "build"}},
                "spec": {"template": {"spec": {"restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "busybox"}]}}}}},
        });
        fixture
            .cluster
            .kubectl_with_input(&["create", "-n", &ns, "-f", "-"], &cron.to_string())
            .await
            .unwrap();
        let run = fixture
            .cluster
            .try_kubectl(&["create", "job", "nightly-1", "--from=cronjob/nightly", "-n", &ns], b"")
            .await
            .unwrap();
        let reason = "concurrent job limit reached: 0 active jobs, max allowed: 0";
        assert!(!run.success && run.stderr.contains(reason), "{}", run.stderr);
        for args in [
            ["describe", "jobpolicy", "builds", "-n", &ns],
            ["describe", "cronjob", "nightly", "-n", &ns],
            ["events", "--for", "job/nightly-1", "-n", &ns],
        ] {
            let output = fixture
                .wait(&format!("{args:?} to show the refusal"), || async {
                    let output = fixture.cluster.kubectl(&args).await.map_err(|e| e.to_string())?;
                    let shown = output.contains("JobRefused") && output.contains(reason);
                    if shown { Ok(output) } else { Err(output) }
                })
                .await;
            assert!(output.contains("Warning"), "{output}");
        }
        let refused = fixture
            .wait("the policy's last refusal", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                status.last_refusal.ok_or("none yet")
            })
            .await;
        assert_eq!(refused.job, format!("{}/nightly-1", ns.name()));
        assert!(refused.reason.contains(reason));
    });
}

#[test]
fn events_of_many_refusals_are_aggregated() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("flood").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(0)).await;
        for n in 0..40 {
            refusal(fixture.create(&ns, &job(&format!("j{n}"), &[("app", "build")], &[])).await);
        }
        let count = fixture
            .wait("the policy's Event", || async {
                let events = fixture.events(&ns, "JobRefused", "builds").await;
                if events.is_empty() { Err("none") } else { Ok(events.len()) }
            })
            .await;
        assert_eq!(count, 1, "one series per (policy, limit, owner)");
    });
}

#[test]
fn a_burst_never_exceeds_the_limit() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("burst").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(5)).await;
        let creates = (0..40).map(|n| {
            let job = job(&format!("j{n}"), &[("app", "build")], &[("run", "60s")]);
            let ns = ns.name();
            async move { fixture.create(ns, &job).await }
        });
        let results: Vec<Value> = futures::future::join_all(creates)
            .await
            .into_iter()
            .map(|result| match result {
                Ok(_) => json!("admitted"),
                Err(kube::Error::Api(status)) => json!(status.code),
                Err(error) => panic!("{error}"),
            })
            .collect();
        let admitted = results.iter().filter(|r| **r == json!("admitted")).count();
        assert_eq!(admitted, 5, "{results:?}");
        assert!(results.iter().all(|r| *r == json!("admitted") || *r == json!(403)), "{results:?}");
    });
}

#[test]
fn a_duplicate_of_a_group_names_the_active_one() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("duplicate").await.unwrap();
        let spec = json!({
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [{"name": "one-each", "maxActiveJobs": 1, "scope": "Group"}],
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        fixture.create(&ns, &job("first", &[("id", "7")], &[("run", "60s")])).await.unwrap();
        fixture.create(&ns, &job("other", &[("id", "8")], &[("run", "60s")])).await.unwrap();
        fixture.create(&ns, &job("ungrouped-1", &[], &[("run", "60s")])).await.unwrap();
        fixture.create(&ns, &job("ungrouped-2", &[], &[("run", "60s")])).await.unwrap();
        let (code, message) = refusal(fixture.create(&ns, &job("again", &[("id", "7")], &[])).await);
        assert_eq!(code, 403);
        assert!(message.contains("first") && message.contains("one-each"), "{message}");
        // Neither un-suspending nor changing a label afterwards passes the limit.
        let mut suspended = job("suspended", &[("id", "7")], &[("run", "60s")]);
        suspended["spec"]["suspend"] = json!(true);
        let created = fixture.create(&ns, &suspended).await;
        if created.is_ok() {
            let start = json!({"spec": {"suspend": false}});
            let started =
                fixture.jobs(&ns).patch("suspended", &PatchParams::default(), &Patch::Merge(&start)).await;
            assert_eq!(refusal(started).0, 403);
        }
        let relabel = json!({"metadata": {"labels": {"id": "7"}}});
        let moved =
            fixture.jobs(&ns).patch("ungrouped-1", &PatchParams::default(), &Patch::Merge(&relabel)).await;
        assert_eq!(refusal(moved).0, 403);
        fixture.jobs(&ns).delete("first", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "first").await;
        fixture
            .wait("the group to be free", || async {
                fixture.create(&ns, &job("again", &[("id", "7")], &[])).await
            })
            .await;
    });
}

#[test]
fn a_dry_run_gets_the_real_answer_and_takes_no_slot() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("dry-run").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let one = serde_json::from_value(job("one", &[("app", "build")], &[("run", "60s")])).unwrap();
        for _ in 0..3 {
            fixture.jobs(&ns).create(&dry_run, &one).await.unwrap();
        }
        fixture.jobs(&ns).create(&PostParams::default(), &one).await.unwrap();
        let two = serde_json::from_value(job("two", &[("app", "build")], &[])).unwrap();
        assert_eq!(refusal(fixture.jobs(&ns).create(&dry_run, &two).await).0, 403);
    });
}

#[test]
fn a_create_with_an_existing_name_is_a_conflict_not_a_refusal() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("samename").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit(1)).await;
        let one = job("one", &[("app", "build")], &[("run", "60s")]);
        fixture.create(&ns, &one).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &one).await).0, 409);
    });
}
