//! The condition `Ready`: from then on no Job passes a limit or is refused for lack of a ledger, and a change applies at once.

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

/// A minute and what a busy machine adds to it.
const A_MINUTE: Duration = Duration::from_secs(150);

fn limit(selects: &str, max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": selects}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

#[test]
fn a_new_namespace_has_its_slots_at_once() {
    scenario(|fixture| async move {
        // By a policy of its own.
        let ns = fixture.cluster.namespace("first").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 1)).await;
        fixture.create(&ns, &job("one", &[("app", "a")], &[("run", "60s")])).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &job("two", &[("app", "a")], &[])).await).0, 403);
        // By one of the cluster that was Ready before the namespace came.
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
        let mut made = Vec::new();
        for n in 0..3 {
            let later = format!("{name}-{n}");
            let namespace = json!({"metadata": {"name": later, "labels": {"limited-by": name}}});
            let namespace = serde_json::from_value(namespace).unwrap();
            namespaces.create(&PostParams::default(), &namespace).await.unwrap();
            let mut one = job("one", &[], &[]);
            // No ServiceAccount, no pods: it has nothing to wait for.
            one["spec"]["parallelism"] = json!(0);
            made.push(fixture.create(&later, &one).await);
        }
        for n in 0..3 {
            namespaces.delete(&format!("{name}-{n}"), &DeleteParams::default()).await.unwrap();
        }
        policies.delete(&name, &DeleteParams::default()).await.unwrap();
        let third = made.pop().unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
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
        // Who limits nothing waits for nothing.
        fixture.wait_policy_ready(&free, "builds", Some(1)).await;
        let ready = |namespace: String| async move {
            let status = fixture.policies(&namespace).get("builds").await.map_err(|e| e.to_string())?.status;
            let ready = status.unwrap_or_default().conditions.into_iter().find(|c| c.type_ == READY);
            ready.ok_or("no condition".to_owned())
        };
        let told = fixture
            .wait("to be told what it waits for", || async {
                let ready = ready(ns.name().to_owned()).await?;
                if ready.reason == "LedgerMissing" { Ok(ready) } else { Err(format!("{ready:?}")) }
            })
            .await;
        assert_eq!(told.status, "False");
        assert!(
            told.message.contains(&format!("the JobLedger {} is missing", ns.name())),
            "{}",
            told.message
        );
        wait_for(A_MINUTE, "the policy to be Ready", || async {
            let ready = ready(ns.name().to_owned()).await?;
            if ready.status == "True" { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await
        .unwrap();
        fixture.create(&ns, &job("one", &[("app", "a")], &[("run", "60s")])).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &job("two", &[("app", "a")], &[])).await).0, 403);
    });
}

/// Whether a Job would be admitted now; nothing is written.
async fn admits(fixture: &Fixture, namespace: &str, app: &str) -> Result<bool, String> {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let probe = serde_json::from_value(job("probe", &[("app", app)], &[])).unwrap();
    match fixture.jobs(namespace).create(&dry, &probe).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// A second is what is promised; a busy machine adds to it, and the figure is printed.
const SOON: Duration = Duration::from_secs(10);

/// Waits until Jobs of these apps are admitted, or are not, and prints how long that takes.
async fn decided(fixture: &Fixture, namespace: &str, what: &str, wanted: &[(&str, bool)]) {
    let since = Instant::now();
    wait_for(SOON, what, || async {
        for (app, admitted) in wanted {
            let now = admits(fixture, namespace, app).await?;
            if now != *admitted {
                return Err(format!("Jobs of {app}: admitted {now}"));
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    println!("{what}: decided by {:.0?} later ({} dry runs included)", since.elapsed(), wanted.len());
}

/// Applies a limit and hears of its being Ready at once, by a watch.
async fn applied(fixture: &Fixture, namespace: &str, name: &str, spec: Value) {
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
        applied(fixture, ns, "builds", limit("a", 2)).await;
        decided(fixture, ns, "made", &[("a", true), ("b", true)]).await;
        for (name, app) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            fixture.create(ns, &job(name, &[("app", app)], &[("run", "300s")])).await.unwrap();
        }
        for round in 1..=3 {
            applied(fixture, ns, "builds", limit("a", 3)).await;
            decided(fixture, ns, &format!("raised ({round})"), &[("a", true), ("b", true)]).await;
            applied(fixture, ns, "builds", limit("a", 1)).await;
            decided(fixture, ns, &format!("lowered ({round})"), &[("a", false), ("b", true)]).await;
            applied(fixture, ns, "builds", limit("b", 1)).await;
            decided(fixture, ns, &format!("relabelled ({round})"), &[("a", true), ("b", false)]).await;
            applied(fixture, ns, "other", limit("a", 2)).await;
            decided(fixture, ns, &format!("a second one ({round})"), &[("a", false), ("b", false)]).await;
            let policies = fixture.policies(ns);
            policies.delete("other", &DeleteParams::default()).await.unwrap();
            let gone = await_condition(policies, "other", |policy: Option<&JobPolicy>| policy.is_none());
            tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
            decided(fixture, ns, &format!("deleted ({round})"), &[("a", true), ("b", false)]).await;
        }
    });
}
