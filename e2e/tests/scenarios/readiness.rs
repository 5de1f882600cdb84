//! The condition `Ready`: once it is True, no Job exceeds a limit or is refused for lack of a ledger, and a change
//! applies immediately.

use std::time::{Duration, Instant};

use job_handler_e2e::wait_for;
use job_handler_shared::policy::{
    spec::{ClusterJobPolicy, JobPolicy},
    status::READY,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, PATIENCE, exclusive_scenario, job, refusal, scenario};

/// The wait before a missing ledger is created (a minute), with slack for a busy machine.
const LEDGER_CREATED: Duration = Duration::from_secs(150);

fn limit(app: &str, max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": app}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

#[test]
fn a_new_namespace_can_use_its_slots_immediately() {
    scenario(|fixture| async move {
        // With a JobPolicy in the namespace.
        let ns = fixture.cluster.namespace("first").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 1)).await;
        fixture.create(&ns, &job("one", &[("app", "a")], &[("run", "60s")])).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &job("two", &[("app", "a")], &[])).await).0, 403);
        // With a ClusterJobPolicy that was Ready before the namespace was created.
        let name = format!("over-{}", ns.name());
        let policies: Api<ClusterJobPolicy> = Api::all(fixture.client());
        let policy: ClusterJobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {"matchLabels": {"limited-by": name}},
                "limits": [{"name": "each", "maxActiveJobs": 1}, {"name": "all", "maxActiveJobs": 2, "scope": "Cluster"}],
            },
        }))
        .unwrap();
        policies.create(&PostParams::default(), &policy).await.unwrap();
        fixture
            .wait("the policy to be Ready", || async {
                let status = policies.get(&name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
                let ready = status.conditions.iter().any(|c| c.type_ == READY && c.status == "True");
                if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
            })
            .await;
        let namespaces: Api<Namespace> = Api::all(fixture.client());
        let mut creates = Vec::new();
        for n in 0..3 {
            let later = format!("{name}-{n}");
            let namespace = json!({"metadata": {"name": later, "labels": {"limited-by": name}}});
            let namespace = serde_json::from_value(namespace).unwrap();
            namespaces.create(&PostParams::default(), &namespace).await.unwrap();
            let mut one = job("one", &[], &[]);
            // Without pods, so that the Job does not need a ServiceAccount.
            one["spec"]["parallelism"] = json!(0);
            creates.push(fixture.create(&later, &one).await);
        }
        for n in 0..3 {
            namespaces.delete(&format!("{name}-{n}"), &DeleteParams::default()).await.unwrap();
        }
        policies.delete(&name, &DeleteParams::default()).await.unwrap();
        let third = creates.pop().unwrap();
        creates.into_iter().for_each(|created| drop(created.unwrap()));
        assert!(refusal(third).1.contains("2 active jobs, max allowed: 2"), "the cluster's limit is full");
    });
}

#[test]
fn existing_limits_are_not_ready_before_their_ledgers_exist() {
    exclusive_scenario(async |fixture| {
        let ns = fixture.cluster.namespace("before").await.unwrap();
        let free = fixture.cluster.namespace("free").await.unwrap();
        fixture.pair.webhook(0).kill().unwrap();
        let apply = |namespace: &str, spec: Value| {
            let api: Api<JobPolicy> = fixture.policies(namespace);
            let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
                "metadata": {"name": "builds"}, "spec": spec});
            async move {
                api.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await.unwrap()
            }
        };
        apply(&ns, limit("a", 1)).await;
        apply(&free, json!({"stamp": {"activeDeadlineSeconds": {"default": 77}}})).await;
        fixture.pair.webhook(0).restart().unwrap();
        // A policy without limits does not need a ledger.
        fixture.wait_policy_ready(&free, "builds", Some(1)).await;
        let ready = |namespace: String| async move {
            let status = fixture.policies(&namespace).get("builds").await.map_err(|e| e.to_string())?.status;
            let ready = status.unwrap_or_default().conditions.into_iter().find(|c| c.type_ == READY);
            ready.ok_or("no condition".to_owned())
        };
        let condition = fixture
            .wait("condition Ready to report the missing ledger", || async {
                let ready = ready(ns.name().to_owned()).await?;
                if ready.reason == "LedgerMissing" { Ok(ready) } else { Err(format!("{ready:?}")) }
            })
            .await;
        assert_eq!(condition.status, "False");
        assert!(
            condition.message.contains(&format!("the JobLedger {} is missing", ns.name())),
            "{}",
            condition.message
        );
        wait_for(LEDGER_CREATED, "the policy to be Ready", || async {
            let ready = ready(ns.name().to_owned()).await?;
            if ready.status == "True" { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await
        .unwrap();
        fixture.create(&ns, &job("one", &[("app", "a")], &[("run", "60s")])).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &job("two", &[("app", "a")], &[])).await).0, 403);
    });
}

/// Whether a dry run of a create is admitted.
async fn admits(fixture: &Fixture, namespace: &str, app: &str) -> Result<bool, String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let probe = serde_json::from_value(job("probe", &[("app", app)], &[])).unwrap();
    match fixture.jobs(namespace).create(&dry_run, &probe).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// The promised delay is a second; the rest is slack for a busy machine. The measured delay is printed.
const SOON: Duration = Duration::from_secs(30);

/// Waits until Jobs of each app are admitted or refused as expected, and prints the delay.
async fn wait_admission(fixture: &Fixture, namespace: &str, change: &str, expected: &[(&str, bool)]) {
    let since = Instant::now();
    wait_for(SOON, change, || async {
        for (app, admitted) in expected {
            let is_admitted = admits(fixture, namespace, app).await?;
            if is_admitted != *admitted {
                return Err(format!("Jobs of {app}: admitted {is_admitted}"));
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    println!("{change}: in force after {:.0?} ({} dry runs included)", since.elapsed(), expected.len());
}

/// Applies a policy and waits with a watch until it is Ready, without the delay of polling.
async fn apply_and_watch(fixture: &Fixture, namespace: &str, name: &str, spec: Value) {
    let policies = fixture.policies(namespace);
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": name}, "spec": spec,
    });
    let patch = Patch::Apply(&policy);
    let params = PatchParams::apply("scenario").force();
    let generation = policies.patch(name, &params, &patch).await.unwrap().metadata.generation;
    let ready = |policy: Option<&JobPolicy>| {
        let conditions = policy.and_then(|policy| policy.status.as_ref()).map(|status| &status.conditions);
        conditions.into_iter().flatten().any(|condition| {
            let current = condition.observed_generation == generation;
            condition.type_ == READY && condition.status == "True" && current
        })
    };
    tokio::time::timeout(PATIENCE, await_condition(policies, name, ready)).await.unwrap().unwrap();
}

#[test]
fn a_changed_policy_applies_as_soon_as_it_is_ready() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("soon").await.unwrap();
        let ns = ns.name();
        apply_and_watch(fixture, ns, "builds", limit("a", 2)).await;
        wait_admission(fixture, ns, "created", &[("a", true), ("b", true)]).await;
        for (name, app) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            fixture.create(ns, &job(name, &[("app", app)], &[("run", "300s")])).await.unwrap();
        }
        for round in 1..=3 {
            apply_and_watch(fixture, ns, "builds", limit("a", 3)).await;
            wait_admission(fixture, ns, &format!("raised ({round})"), &[("a", true), ("b", true)]).await;
            apply_and_watch(fixture, ns, "builds", limit("a", 1)).await;
            wait_admission(fixture, ns, &format!("lowered ({round})"), &[("a", false), ("b", true)]).await;
            apply_and_watch(fixture, ns, "builds", limit("b", 1)).await;
            wait_admission(fixture, ns, &format!("relabelled ({round})"), &[("a", true), ("b", false)]).await;
            apply_and_watch(fixture, ns, "other", limit("a", 2)).await;
            wait_admission(fixture, ns, &format!("a second one ({round})"), &[("a", false), ("b", false)])
                .await;
            let policies = fixture.policies(ns);
            policies.delete("other", &DeleteParams::default()).await.unwrap();
            let deleted = await_condition(policies, "other", |policy: Option<&JobPolicy>| policy.is_none());
            tokio::time::timeout(PATIENCE, deleted).await.unwrap().unwrap();
            wait_admission(fixture, ns, &format!("deleted ({round})"), &[("a", true), ("b", false)]).await;
        }
    });
}
