//! Policies of one tenant that are invalid, large or too many. The limits of other tenants stay exact, and new ones come
//! into force.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use job_handler_e2e::{harness::cgroup::MemoryLimit, pair::review_path, wait_for};
use job_handler_shared::{keys, policy::spec::JobPolicy};
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        core::v1::{Namespace, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::memory::WEBHOOK_LIMIT;
use crate::fixtures::{Fixture, exclusive_scenario, job, refusal, scenario};

/// JobPolicies of a namespace that apply.
const NAMESPACE_MAX: usize = 100;
/// How long a policy names another label key after the other.
const CHANGES: Duration = Duration::from_secs(30);

fn limit(max: u32) -> Value {
    json!({"limits": [{"name": "few", "maxActiveJobs": max}]})
}

async fn create_policy(
    client: &Client,
    namespace: &str,
    name: &str,
    spec: &Value,
) -> kube::Result<JobPolicy> {
    let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": name},
        "spec": spec});
    let api: Api<JobPolicy> = Api::namespaced(client.clone(), namespace);
    api.create(&PostParams::default(), &serde_json::from_value(policy).unwrap()).await
}

/// Condition Ready of a policy, once it has this reason.
async fn wait_reason(fixture: &Fixture, namespace: &str, name: &str, reason: &str) -> Condition {
    fixture
        .wait(&format!("JobPolicy {namespace}/{name} to be {reason}"), || async {
            let status =
                fixture.policies(namespace).get(name).await.map_err(|error| error.to_string())?.status;
            let ready = status.unwrap_or_default().conditions.into_iter().find(|c| c.type_ == "Ready");
            ready.clone().filter(|ready| ready.reason == reason).ok_or(format!("{ready:?}"))
        })
        .await
}

/// A new limit of another tenant comes into force and admits no Job too many.
async fn assert_victim_is_limited(fixture: &Fixture, victim: &str) {
    fixture.apply_policy(victim, "own", limit(1)).await;
    let running = [("end", "Hang")];
    fixture.create(victim, &job("one", &[], &running)).await.unwrap();
    for name in ["two", "three", "four"] {
        let (code, message) = refusal(fixture.create(victim, &job(name, &[], &running)).await);
        assert!(code == 403 && message.contains("1 active jobs, max allowed: 1"), "{code}: {message}");
    }
}

/// The number of entries and the size of each configuration of the limits.
async fn configurations(fixture: &Fixture) -> BTreeMap<String, (usize, usize)> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={}", keys::APP));
    let sizes = |configuration: ValidatingWebhookConfiguration| {
        let entries = configuration.webhooks.clone().unwrap_or_default();
        let bytes = entries.iter().map(|entry| serde_json::to_vec(entry).unwrap().len()).sum();
        (configuration.name_any(), (entries.len(), bytes))
    };
    let found: BTreeMap<_, _> = api.list(&ours).await.unwrap().items.into_iter().map(sizes).collect();
    for (name, (entries, bytes)) in &found {
        assert!(*entries <= 200 && *bytes <= 512 << 10, "{name}: {entries} entries, {bytes} bytes");
    }
    found
}

/// The CA bundles in the entries of the limits.
async fn ca_bundles(fixture: &Fixture) -> BTreeSet<Vec<u8>> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
    let configuration = api.get(keys::LIMITS_CONFIGURATION).await.unwrap();
    let entries = configuration.webhooks.into_iter().flatten();
    entries.map(|entry| entry.client_config.ca_bundle.unwrap_or_default().0).collect()
}

/// The CRD as an older release had it: without the bounds of label keys.
async fn remove_bounds_of_label_keys(fixture: &Fixture) {
    fn remove(schema: &mut Value) {
        if let Some(fields) = schema.as_object_mut() {
            fields.remove("x-kubernetes-validations");
            fields.values_mut().for_each(remove);
        }
    }
    let api: Api<CustomResourceDefinition> = Api::all(fixture.client());
    let name = "jobpolicies.job-handler.io";
    let mut crd = serde_json::to_value(api.get(name).await.unwrap()).unwrap();
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    remove(&mut schema["properties"]["jobSelector"]["properties"]["matchLabels"]);
    let crd = serde_json::from_value(crd).unwrap();
    api.replace(name, &PostParams::default(), &crd).await.unwrap();
}

#[test]
fn a_policy_whose_entry_the_apiserver_rejects_harms_only_itself() {
    exclusive_scenario(async |fixture| {
        let hostile = fixture.cluster.namespace("rejected").await.unwrap();
        let victim = fixture.cluster.namespace("victim").await.unwrap();
        fixture.apply_policy(&hostile, "valid", limit(5)).await;
        remove_bounds_of_label_keys(fixture).await;
        let key = format!("{}/x", "p".repeat(258));
        let spec = json!({"jobSelector": {"matchLabels": {key: "y"}}, "limits": [{"name": "few", "maxActiveJobs": 1}]});
        fixture
            .wait("a policy with a label key of 260 characters", || async {
                create_policy(&fixture.client(), &hostile, "long-key", &spec).await.map(drop)
            })
            .await;
        let ready = wait_reason(fixture, &hostile, "long-key", "EntryRejected").await;
        assert_eq!(ready.status, "False");
        assert!(ready.message.contains("prefix part must be no more than 253"), "{}", ready.message);
        assert_victim_is_limited(fixture, &victim).await;
        fixture.wait_policy_ready(&hostile, "valid", Some(1)).await;
        // The CA is still replaced everywhere.
        let before = ca_bundles(fixture).await;
        assert!(!before.is_empty());
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), keys::NAMESPACE);
        secrets.delete(keys::CA_SECRET, &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the new CA in all entries of limits", || async {
                let now = ca_bundles(fixture).await;
                if now.len() == 1 && before.is_disjoint(&now) {
                    Ok(())
                } else {
                    Err(format!("{} CAs", now.len()))
                }
            })
            .await;
        let (code, message) = refusal(fixture.create(&victim, &job("five", &[], &[])).await);
        assert!(code == 403 && message.contains("1 active jobs, max allowed: 1"), "{code}: {message}");
        // The apiserver accepts empty fields of a selector, and does not store them in a webhook entry.
        let requirement = json!({"key": "a", "operator": "DoesNotExist", "values": []});
        let selector = json!({"matchLabels": {}, "matchExpressions": [requirement]});
        let empty = json!({"jobSelector": selector, "limits": [{"name": "few", "maxActiveJobs": 9}]});
        fixture.apply_policy(&hostile, "empty-fields", empty).await;
        // The policy is corrected.
        let corrected = json!({"jobSelector": {"matchLabels": {"app": "y"}}, "limits": [{"name": "few", "maxActiveJobs": 1}]});
        fixture.apply_policy(&hostile, "corrected", corrected).await;
        fixture.policies(&hostile).delete("long-key", &DeleteParams::default()).await.unwrap();
    });
}

#[test]
fn policies_with_the_longest_keys_and_selectors_are_enforced() {
    scenario(|fixture| async move {
        let victim = fixture.cluster.namespace("victim").await.unwrap();
        let label = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(57));
        let key = |n: usize| format!("{label}{n:04}/{}", "k".repeat(63));
        let long_keys = |first: usize| {
            let labels: serde_json::Map<String, Value> =
                (0..32).map(|n| (key(first + n), "v".into())).collect();
            let expressions: Vec<Value> =
                (32..48).map(|n| json!({"key": key(first + n), "operator": "Exists"})).collect();
            let group: Vec<String> = (48..56).map(|n| key(first + n)).collect();
            json!({
                "jobSelector": {"matchLabels": labels, "matchExpressions": expressions},
                "group": {"type": "Labels", "labelKeys": group},
                "limits": [{"name": "few", "maxActiveJobs": 1, "scope": "Group"}],
            })
        };
        for n in 0..3 {
            let hostile = fixture.cluster.namespace(&format!("keys-{n}")).await.unwrap();
            fixture.apply_policy(&hostile, "long-keys", long_keys(n * 56)).await;
            // Memory keeps the labels with these keys of each Job of the namespace.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            create_policy(&fixture.client(), &hostile, "further", &long_keys(200)).await.unwrap();
            let ready = wait_reason(fixture, &hostile, "further", "TooManyPolicies").await;
            assert!(ready.message.contains("more than 64 different label keys"), "{}", ready.message);
            fixture.wait_policy_ready(&hostile, "long-keys", Some(1)).await;
        }
        let hostile = fixture.cluster.namespace("large").await.unwrap();
        let values = |n: usize| -> Vec<String> {
            (0..64).map(|value| format!("{n:02}{value:02}{}", "v".repeat(59))).collect()
        };
        let expressions: Vec<Value> = (0..16)
            .map(|n| json!({"key": format!("k{n}"), "operator": "NotIn", "values": values(n)}))
            .collect();
        for n in 0..12 {
            let selector = json!({"matchExpressions": expressions});
            let spec = json!({"jobSelector": selector, "limits": [{"name": "few", "maxActiveJobs": 90}]});
            fixture.apply_policy(&hostile, &format!("large-{n}"), spec).await;
        }
        assert_victim_is_limited(fixture, &victim).await;
        configurations(fixture).await;
    });
}

#[test]
fn of_too_many_policies_of_a_namespace_the_oldest_apply_and_others_are_not_affected() {
    exclusive_scenario(async |fixture| {
        let hostile = fixture.cluster.namespace("crowd").await.unwrap();
        let victim = fixture.cluster.namespace("victim").await.unwrap();
        let client = fixture.client();
        let (own, spec) = (hostile.name().to_owned(), limit(3));
        for n in 0..NAMESPACE_MAX {
            create_policy(&client, &own, &format!("old-{n}"), &spec).await.unwrap();
        }
        fixture.wait_policy_ready(&own, "old-99", Some(1)).await;
        // Ages have a resolution of one second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        // A name that sorts first does not make a policy older.
        let names = (0..320).map(|n| format!("a-new-{n}"));
        let creates = names.map(|name| {
            let (client, own, spec) = (client.clone(), own.clone(), spec.clone());
            async move { create_policy(&client, &own, &name, &spec).await.unwrap() }
        });
        stream::iter(creates).buffer_unordered(8).collect::<Vec<_>>().await;
        let ready = wait_reason(fixture, &own, "a-new-319", "TooManyPolicies").await;
        assert!(ready.message.contains("has more than 100 JobPolicies"), "{}", ready.message);
        assert_victim_is_limited(fixture, &victim).await;
        let sizes = configurations(fixture).await;
        assert_eq!(
            sizes.values().map(|(entries, _)| entries).sum::<usize>(),
            2 * (NAMESPACE_MAX + 1),
            "{sizes:?}"
        );
        assert!(sizes.len() > 1, "spread: {sizes:?}");
        fixture.wait_policy_ready(&own, "old-0", Some(1)).await;
        // There is room for one more.
        fixture.policies(&own).delete("old-5", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("one of the new policies to be Ready", || async {
                let policies =
                    fixture.policies(&own).list(&ListParams::default()).await.map_err(|e| e.to_string())?;
                let new = policies.items.iter().filter(|policy| policy.name_any().starts_with("a-new-"));
                let ready = new.filter(|policy| is_ready(policy)).count();
                if ready == 1 { Ok(()) } else { Err(format!("{ready} are")) }
            })
            .await;
    });
}

#[test]
fn a_policy_that_names_another_label_all_the_time_holds_no_limit_shut() {
    exclusive_scenario(async |fixture| {
        let hostile = fixture.cluster.namespace("keys").await.unwrap();
        let victim = fixture.cluster.namespace("victim").await.unwrap();
        fixture.apply_policy(&victim, "own", limit(3)).await;
        // No policy names them, so memory does not keep them.
        let build = |name: &str| job(name, &[("app", "build"), ("version", "7")], &[("end", "Hang")]);
        fixture.create(&hostile, &build("any")).await.unwrap();
        let until = Instant::now() + CHANGES;
        let change = async {
            let mut changes = 0;
            while Instant::now() < until {
                changes += 1;
                let key = format!("k{changes}");
                let spec = json!({"jobSelector": {"matchLabels": {key: ""}},
                    "limits": [{"name": "few", "maxActiveJobs": 9}]});
                let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
                    "metadata": {"name": "changes"}, "spec": spec});
                let parameters = PatchParams::apply("scenario").force();
                fixture
                    .policies(&hostile)
                    .patch("changes", &parameters, &Patch::Apply(&policy))
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            changes
        };
        let create = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            for name in ["one", "two", "three"] {
                fixture.create(&victim, &build(name)).await.unwrap();
            }
            let mut refusals = 0;
            while Instant::now() < until {
                let (code, message) = refusal(fixture.create(&victim, &build("four")).await);
                assert!(
                    code == 403 && message.contains("3 active jobs, max allowed: 3"),
                    "{code}: {message}"
                );
                refusals += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            refusals
        };
        let (changes, refusals) = tokio::join!(change, create);
        println!("{refusals} refusals while the policy changed {changes} times");
        assert!(changes > 10 && refusals > 3, "{changes} changes, {refusals} refusals");
        fixture.wait_policy_ready(&hostile, "changes", Some(changes)).await;
    });
}

fn is_ready(policy: &JobPolicy) -> bool {
    let conditions = policy.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[test]
#[ignore = "takes minutes"]
fn five_thousand_limited_policies_are_enforced() {
    exclusive_scenario(async |fixture| {
        let client = fixture.client();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let teams: Vec<String> = (0..100).map(|n| format!("team-{n}")).collect();
        for team in &teams {
            let namespace = serde_json::from_value(json!({"metadata": {"name": team}})).unwrap();
            namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        }
        let creates =
            teams.iter().flat_map(|team| (0..50).map(move |n| (team.clone(), n))).map(|(team, n)| {
                let client = client.clone();
                let spec = json!({"jobSelector": {"matchLabels": {"app": format!("app-{n}")}},
                "limits": [{"name": "few", "maxActiveJobs": 1}]});
                async move { create_policy(&client, &team, &format!("p-{n}"), &spec).await.unwrap() }
            });
        stream::iter(creates).buffer_unordered(16).collect::<Vec<_>>().await;
        wait_for(Duration::from_secs(600), "all policies to be Ready", || async {
            let api: Api<JobPolicy> = Api::all(client.clone());
            let policies = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let ready = policies.iter().filter(|policy| is_ready(policy)).count();
            if ready >= 5000 { Ok(()) } else { Err(format!("{ready} of 5,000 are")) }
        })
        .await
        .unwrap();
        let sizes = configurations(fixture).await;
        assert_eq!(sizes.values().map(|(entries, _)| entries).sum::<usize>(), 10_000, "{sizes:?}");
        for team in ["team-0", "team-57", "team-99"] {
            let build = |name: &str| job(name, &[("app", "app-7")], &[("end", "Hang")]);
            fixture.create(team, &build("one")).await.unwrap();
            assert_eq!(refusal(fixture.create(team, &build("two")).await).0, 403);
        }
        paths_are_replaced_within_the_memory_limit(fixture).await;
    });
}

/// Soon after its start a webhook replaces the path twice, and looks into all configurations before.
async fn paths_are_replaced_within_the_memory_limit(fixture: &Fixture) {
    let webhook = fixture.pair.webhook(0);
    webhook.restart().unwrap();
    let limit = MemoryLimit::apply(&webhook.name(), webhook.process().id(), WEBHOOK_LIMIT).unwrap();
    webhook.wait_ready(Duration::from_secs(60)).await.unwrap();
    let mut paths = BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while paths.len() < 3 {
        assert!(Instant::now() < deadline, "not replaced twice: {paths:?}");
        paths.insert(review_path(fixture.client(), keys::VALIDATE_PATH).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    webhook.process().ensure_running().unwrap();
    limit.check().unwrap();
    webhook.kill().unwrap();
}
