//! Mode Warn: what a policy would do is reported by warning, Event and metric, and not done.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, job, scenario};

/// Creates by kubectl; gives what it wrote besides its result.
async fn create(fixture: &Fixture, namespace: &str, job: &Value) -> String {
    let args = ["create", "-n", namespace, "-f", "-"];
    let said = fixture.cluster.try_kubectl(&args, job.to_string().as_bytes()).await.unwrap();
    assert!(said.success, "mode Warn never stands in the way: {}", said.stderr);
    said.stderr
}

#[test]
fn a_job_that_would_be_refused_is_reported_in_three_places_and_admitted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("warned").await.unwrap();
        let spec = json!({"mode": "Warn", "limits": [{"name": "few", "maxActiveJobs": 1}]});
        fixture.apply_policy(&ns, "trial", spec).await;
        let running = [("run", "60s")];
        assert_eq!(create(fixture, &ns, &job("first", &[], &running)).await, "");
        let told =
            "would be refused (mode Warn): concurrent job limit reached: 1 active jobs, max allowed: 1";
        // The picture it counts by is up to a second old.
        fixture
            .wait("a warning", || async {
                let name = format!("more-{}", jiff::Timestamp::now().as_nanosecond());
                let said = create(fixture, &ns, &job(&name, &[], &running)).await;
                if said.contains(told) && said.contains("limit \"few\" of JobPolicy") {
                    Ok(())
                } else {
                    Err(said)
                }
            })
            .await;
        fixture
            .wait("describe to tell", || async {
                let said = fixture.cluster.kubectl(&["describe", "jobpolicy", "trial", "-n", &ns]).await;
                let said = said.map_err(|e| e.to_string())?;
                if said.contains("JobWouldBeRefused") && said.contains(told) { Ok(()) } else { Err(said) }
            })
            .await;
        let (_, metrics) = fixture.pair.webhook(0).get("/metrics").await.unwrap();
        let counted = format!("policy=\"JobPolicy {}/trial\",limit=\"few\"", ns.name());
        let line = metrics.lines().find(|l| l.contains("limit_would_refuse_total") && l.contains(&counted));
        assert!(line.is_some(), "{counted} in {metrics}");
        let status = fixture.policies(&ns).get("trial").await.unwrap().status.unwrap();
        assert_eq!(status.last_refusal, None, "nobody was refused");
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
        let said = create(fixture, &ns, &tried).await;
        for told in [
            "would be set (mode Warn): activeDeadlineSeconds: unset -> 60 (default of JobPolicy",
            "would be set (mode Warn): backoffLimit: 9 -> 1 (maximum of JobPolicy",
            "would be set (mode Warn): containerResources: main (default of JobPolicy",
        ] {
            assert!(said.contains(told), "{told} in {said}");
        }
        let there = fixture.jobs(&ns).get("tried").await.unwrap();
        assert!(!annotation(&there, "job-handler/stamped").contains("trial"));
        let spec = there.spec.unwrap();
        assert_eq!((spec.backoff_limit, spec.active_deadline_seconds), (Some(4), None));
    });
}

#[test]
fn a_policy_in_warn_mode_blocks_no_job_while_the_webhook_is_down() {
    super::fixtures::exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("warnaway").await.unwrap();
        let spec = json!({"mode": "Warn", "limits": [{"name": "none", "maxActiveJobs": 0}]});
        fixture.apply_policy(&ns, "trial", spec).await;
        fixture.pair.webhook(0).kill().unwrap();
        fixture.create(&ns, &job("free", &[], &[])).await.unwrap();
        fixture.pair.webhook(0).restart().unwrap();
        fixture
            .wait("it to be told again", || async {
                let name = format!("told-{}", jiff::Timestamp::now().as_nanosecond());
                let said = create(fixture, &ns, &job(&name, &[], &[])).await;
                if said.contains("would be refused") { Ok(()) } else { Err(said) }
            })
            .await;
        // From trial to earnest, and back.
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
