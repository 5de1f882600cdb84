//! Mode Warn: the effect that a policy would have is reported by warning, Event and metric, but not applied.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, job, scenario};

/// Creates a Job with kubectl and returns its standard error.
async fn create(fixture: &Fixture, namespace: &str, job: &Value) -> String {
    let args = ["create", "-n", namespace, "-f", "-"];
    let output = fixture.cluster.try_kubectl(&args, job.to_string().as_bytes()).await.unwrap();
    assert!(output.success, "mode Warn must not refuse a Job: {}", output.stderr);
    output.stderr
}

#[test]
fn a_job_that_would_be_refused_is_reported_by_warning_event_and_metric_and_admitted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("warned").await.unwrap();
        let spec = json!({"mode": "Warn", "limits": [{"name": "few", "maxActiveJobs": 1}]});
        fixture.apply_policy(&ns, "trial", spec).await;
        let running = [("run", "60s")];
        assert_eq!(create(fixture, &ns, &job("first", &[], &running)).await, "");
        let expected =
            "would be refused (mode Warn): concurrent job limit reached: 1 active jobs, max allowed: 1";
        // Mode Warn counts from a cache that may be a second old.
        fixture
            .wait("a warning", || async {
                let name = format!("more-{}", jiff::Timestamp::now().as_nanosecond());
                let warnings = create(fixture, &ns, &job(&name, &[], &running)).await;
                if warnings.contains(expected) && warnings.contains("limit \"few\" of JobPolicy") {
                    Ok(())
                } else {
                    Err(warnings)
                }
            })
            .await;
        fixture
            .wait("kubectl describe to show the refusal", || async {
                let output = fixture.cluster.kubectl(&["describe", "jobpolicy", "trial", "-n", &ns]).await;
                let output = output.map_err(|e| e.to_string())?;
                if output.contains("JobWouldBeRefused") && output.contains(expected) {
                    Ok(())
                } else {
                    Err(output)
                }
            })
            .await;
        let (_, metrics) = fixture.pair.webhook(0).get("/metrics").await.unwrap();
        let counted = format!("policy=\"JobPolicy {}/trial\",limit=\"few\"", ns.name());
        let line = metrics.lines().find(|l| l.contains("limit_would_refuse_total") && l.contains(&counted));
        assert!(line.is_some(), "{counted} in {metrics}");
        let status = fixture.policies(&ns).get("trial").await.unwrap().status.unwrap();
        assert_eq!(status.last_refusal, None, "no Job was refused");
    });
}

#[test]
fn stamps_are_reported_and_not_applied() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("warnstamp").await.unwrap();
        let enforced = json!({"stamp": {"backoffLimit": {"max": 4}}});
        fixture.apply_policy(&ns, "enforced", enforced).await;
        let spec = json!({"mode": "Warn", "stamp": {"activeDeadlineSeconds": {"default": 60},
            "backoffLimit": {"max": 1}, "containerResources": {"limits": {"cpu": "1"}}}});
        fixture.apply_policy(&ns, "trial", spec).await;
        let mut tried = job("tried", &[], &[]);
        tried["spec"]["backoffLimit"] = json!(9);
        let warnings = create(fixture, &ns, &tried).await;
        for warning in [
            "would be set (mode Warn): activeDeadlineSeconds: unset -> 60 (default of JobPolicy",
            "would be set (mode Warn): backoffLimit: 9 -> 1 (maximum of JobPolicy",
            "would be set (mode Warn): containerResources: main (default of JobPolicy",
        ] {
            assert!(warnings.contains(warning), "{warning} in {warnings}");
        }
        let stored = fixture.jobs(&ns).get("tried").await.unwrap();
        assert!(!annotation(&stored, "job-handler/stamped").contains("trial"));
        let spec = stored.spec.unwrap();
        assert_eq!((spec.backoff_limit, spec.active_deadline_seconds), (Some(4), None));
    });
}

#[test]
fn a_policy_in_warn_mode_blocks_no_job_while_the_webhook_is_down() {
    super::fixtures::exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("warn-webhook-down").await.unwrap();
        let spec = json!({"mode": "Warn", "limits": [{"name": "none", "maxActiveJobs": 0}]});
        fixture.apply_policy(&ns, "trial", spec).await;
        fixture.pair.webhook(0).kill().unwrap();
        fixture.create(&ns, &job("free", &[], &[])).await.unwrap();
        fixture.pair.webhook(0).restart().unwrap();
        fixture
            .wait("the warning again", || async {
                let name = format!("again-{}", jiff::Timestamp::now().as_nanosecond());
                let warnings = create(fixture, &ns, &job(&name, &[], &[])).await;
                if warnings.contains("would be refused") { Ok(()) } else { Err(warnings) }
            })
            .await;
        // Change the mode to Enforce and back.
        let api: Api<job_handler_shared::policy::spec::JobPolicy> = fixture.policies(&ns);
        for (mode, refused) in [("Enforce", true), ("Warn", false)] {
            let patch = json!({"spec": {"mode": mode}});
            let params = PatchParams::default();
            let generation =
                api.patch("trial", &params, &Patch::Merge(&patch)).await.unwrap().metadata.generation;
            fixture.wait_policy_ready(&ns, "trial", generation).await;
            let name = format!("mode-{}", mode.to_lowercase());
            assert_eq!(fixture.create(&ns, &job(&name, &[], &[])).await.is_err(), refused, "{mode}");
        }
    });
}
