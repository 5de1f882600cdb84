//! What the holder of a token of webhook or sink may not do, although their roles alone would let him.

use std::path::Path;

use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions, pair::patch_stamping_webhooks};
use job_handler_shared::{keys::NAMESPACE, policy::spec::ClusterJobPolicy};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::super::fixtures::{
    Fixture, PATIENCE, exclusive_scenario_with_own_cluster, job, refusal, scenario,
};

/// Runs kubectl as one of the accounts; an error is what the apiserver says.
async fn attempt(cluster: &Cluster, account: &str, arguments: &[&str], input: &Value) -> Result<(), String> {
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    let arguments = [&[user.as_str()][..], arguments].concat();
    let output = cluster.try_kubectl(&arguments, input.to_string().as_bytes()).await.unwrap();
    if output.success { Ok(()) } else { Err(output.stderr) }
}

/// Asserts that an attempt of an account fails with these words. Nothing is changed if it does not.
async fn assert_denied(cluster: &Cluster, account: &str, arguments: &[&str], input: &Value, words: &str) {
    let arguments = [arguments, &["--dry-run=server"]].concat();
    match attempt(cluster, account, &arguments, input).await {
        Err(error) if error.contains(words) => {}
        other => panic!("expected «{words}» for {arguments:?} {input}: {other:?}"),
    }
}

fn config_map(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "of-the-sink", "namespace": namespace}})
}

const CREATE: [&str; 3] = ["create", "-f", "-"];
const NOT_IN_KUBE_SYSTEM: &str = "job-handler-sink writes nothing in kube-system";

/// The apiserver loads admission policies with a delay.
async fn wait_in_force(fixture: &Fixture) {
    fixture
        .wait("the admission policies to be in force", || async {
            let create = ["create", "-f", "-", "--dry-run=server"];
            match attempt(&fixture.cluster, "job-handler-sink", &create, &config_map("kube-system")).await {
                Err(error) if error.contains(NOT_IN_KUBE_SYSTEM) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[test]
fn the_sink_writes_nothing_in_kube_system() {
    scenario(|fixture| async move {
        wait_in_force(fixture).await;
        let ns = fixture.cluster.namespace("sink-writes").await.unwrap();
        let words = NOT_IN_KUBE_SYSTEM;
        assert_denied(&fixture.cluster, "job-handler-sink", &CREATE, &config_map("kube-system"), words).await;
        let delete = ["delete", "configmap", "extension-apiserver-authentication", "-n", "kube-system"];
        assert_denied(&fixture.cluster, "job-handler-sink", &delete, &Value::Null, words).await;
        attempt(&fixture.cluster, "job-handler-sink", &CREATE, &config_map(&ns)).await.unwrap();
        // Users may, of course.
        fixture.cluster.kubectl(&["create", "configmap", "of-a-user", "-n", "kube-system"]).await.unwrap();
        fixture.cluster.kubectl(&["delete", "configmap", "of-a-user", "-n", "kube-system"]).await.unwrap();
    });
}

#[test]
fn the_sink_has_the_apiserver_call_webhooks_for_jobs_only() {
    scenario(|fixture| async move {
        wait_in_force(fixture).await;
        let ns = fixture.cluster.namespace("sink-hooks").await.unwrap();
        fixture.apply_policy(&ns, "few", json!({"limits": [{"name": "few", "maxActiveJobs": 3}]})).await;
        let get = ["get", "validatingwebhookconfiguration", "job-handler-limits", "-o", "json"];
        let limits: Value = serde_json::from_str(&fixture.cluster.kubectl(&get).await.unwrap()).unwrap();
        let mut other = limits.clone();
        other["metadata"] = json!({"name": "other"});
        let words = "of the name job-handler-limits only";
        assert_denied(&fixture.cluster, "job-handler-sink", &CREATE, &other, words).await;
        for (field, value) in [("resources", "secrets"), ("resources", "*"), ("apiGroups", "*")] {
            let mut broader = limits.clone();
            broader["webhooks"][0]["rules"][0][field] = json!([value]);
            // The sink writes it, too; a conflict would hide what the policy says.
            broader["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let replace = ["replace", "-f", "-"];
            let words = "the webhooks of job-handler-limits are for Jobs only";
            assert_denied(&fixture.cluster, "job-handler-sink", &replace, &broader, words).await;
        }
    });
}

#[test]
fn the_webhook_changes_nothing_but_its_ca_bundle_and_paths() {
    scenario(|fixture| async move {
        wait_in_force(fixture).await;
        let cluster = &fixture.cluster;
        let ca = "jsonpath={.data.ca\\.crt}";
        let ca = cluster
            .kubectl(&["get", "configmap", "kube-root-ca.crt", "-n", "default", "-o", ca])
            .await
            .unwrap();
        let ca = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca);
        let add = |path: &str, value: Value| json!([{"op": "add", "path": path, "value": value}]).to_string();
        let patch = |operations: &str| {
            let operations = operations.to_owned();
            async move {
                let patch = [
                    "patch",
                    "mutatingwebhookconfiguration",
                    "job-handler",
                    "--type=json",
                    "--dry-run=server",
                ];
                let patch = [&patch[..], &["-p", &operations]].concat();
                attempt(cluster, "job-handler-webhook", &patch, &Value::Null).await
            }
        };
        patch(&add("/webhooks/0/clientConfig/caBundle", json!(ca))).await.unwrap();
        let url = "jsonpath={.webhooks[0].clientConfig.url}";
        let url = cluster
            .kubectl(&["get", "mutatingwebhookconfiguration", "job-handler", "-o", url])
            .await
            .unwrap();
        let host = url.strip_prefix("https://").unwrap().split('/').next().unwrap();
        let path = |scheme: &str, host: &str| {
            add(
                "/webhooks/0/clientConfig/url",
                json!(format!("{scheme}://{host}/1-1-0123456789abcdef/mutate")),
            )
        };
        patch(&path("https", host)).await.unwrap();
        for operations in [
            path("https", "example.com"),
            path("https", &format!("{host}0")),
            add("/webhooks/0/rules/0/resources", json!(["*"])),
            add("/webhooks/0/rules/0/apiGroups", json!(["*"])),
            add("/webhooks/0/failurePolicy", json!("Fail")),
            add("/webhooks/0/matchPolicy", json!("Exact")),
            add("/webhooks/0/namespaceSelector", json!({})),
            add("/webhooks/0/objectSelector", json!({"matchLabels": {"a": "b"}})),
            add("/webhooks/0/timeoutSeconds", json!(30)),
            add("/webhooks/0/reinvocationPolicy", json!("Never")),
            add("/webhooks/0/sideEffects", json!("NoneOnDryRun")),
            add("/webhooks/0/name", json!("other.job-handler.io")),
            add("/webhooks/1/matchConditions", json!([])),
            add("/metadata/labels/a", json!("b")),
            add("/metadata/annotations", json!({"a": "b"})),
            json!([{"op": "remove", "path": "/webhooks/1"}]).to_string(),
        ] {
            let denied = patch(&operations).await.expect_err(&operations);
            assert!(
                denied.contains("job-handler-webhook changes nothing but the caBundle and the paths"),
                "{operations}: {denied}"
            );
        }
        // Of the other configurations, its role allows none.
        let other = ["patch", "validatingwebhookconfiguration", "job-handler-limits", "-p", "{}"];
        let denied = attempt(cluster, "job-handler-webhook", &other, &Value::Null).await.unwrap_err();
        assert!(denied.contains("cannot"), "{denied}");
    });
}

/// A Secret of another type would contain the token of any account of the namespace.
#[test]
fn no_program_creates_a_secret_with_the_token_of_another_account() {
    scenario(|fixture| async move {
        wait_in_force(fixture).await;
        let secret = |name: &str, kind: &str, account: &str| {
            json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {
                "name": name, "namespace": NAMESPACE,
                "annotations": {"kubernetes.io/service-account.name": account}}})
        };
        let token = "kubernetes.io/service-account-token";
        for (name, kind) in [("other", "Opaque"), ("job-handler-ca", token), ("other", token)] {
            let words =
                "job-handler-webhook creates the Secret job-handler-ca of type kubernetes.io/tls only";
            let secret = secret(name, kind, "job-handler-sink");
            assert_denied(&fixture.cluster, "job-handler-webhook", &CREATE, &secret, words).await;
        }
        for (name, kind) in [("other", "Opaque"), ("job-handler-seal", token), ("other", token)] {
            let words = "job-handler-sink writes Secrets of results and the Secret job-handler-seal only";
            let secret = secret(name, kind, "job-handler-webhook");
            assert_denied(&fixture.cluster, "job-handler-sink", &CREATE, &secret, words).await;
        }
    });
}

/// By the sinks' Lease, its holder could keep them from electing a leader.
#[test]
fn the_webhook_writes_leases_of_webhooks_only() {
    scenario(|fixture| async move {
        wait_in_force(fixture).await;
        let lease = |labels: Value| {
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "another", "namespace": NAMESPACE, "labels": labels}})
        };
        let words = "job-handler-webhook writes the Leases of webhooks only";
        for labels in [json!({}), json!({"job-handler/component": "sink"})] {
            assert_denied(&fixture.cluster, "job-handler-webhook", &CREATE, &lease(labels), words).await;
        }
        let own = lease(json!({"job-handler/component": "webhook"}));
        // While no sink leads, the Lease of the leader does not exist.
        let mut leader = own.clone();
        leader["metadata"]["name"] = job_handler_shared::keys::LEADER_LEASE.into();
        assert_denied(&fixture.cluster, "job-handler-webhook", &CREATE, &leader, words).await;
        let create = [&CREATE[..], &["--dry-run=server"]].concat();
        attempt(&fixture.cluster, "job-handler-webhook", &create, &own).await.unwrap();
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
        let delete = format!("{leases}/{}?dryRun=All", job_handler_shared::keys::LEADER_LEASE);
        let delete = ["delete", "--raw", &delete];
        let denied = attempt(&fixture.cluster, "job-handler-webhook", &delete, &Value::Null).await;
        let denied = denied.expect_err("the leader's Lease");
        assert!(denied.contains(words), "{denied}");
    });
}

#[test]
fn a_sink_for_some_namespaces_has_no_rights_elsewhere() {
    exclusive_scenario_with_own_cluster(async || {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let (served, other) =
            (cluster.namespace("served").await.unwrap(), cluster.namespace("elsewhere").await.unwrap());
        let sink_arguments = vec![format!("--namespaces={}", served.name())];
        let pair =
            Pair::install(&cluster, PairOptions { sink_arguments, ..PairOptions::default() }).await.unwrap();
        let fixture = Fixture { cluster, pair };
        narrow(&fixture, served.name()).await;

        apply_cluster_policy(
            &fixture,
            "all",
            json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}}),
        )
        .await;
        let selector = json!({"matchLabels": {"app": "none"}});
        let none = json!({"jobSelector": selector, "limits": [{"name": "none", "maxActiveJobs": 0}]});
        apply_cluster_policy(&fixture, "none", none).await;
        for (name, labels) in [("a", &[][..]), ("b", &[("app", "none")][..])] {
            let job = job(name, labels, &[("run", "200ms"), ("log", "a line\n")]);
            fixture.create(&other, &job).await.unwrap();
            match name {
                "a" => drop(fixture.create(&served, &job).await.unwrap()),
                _ => assert!(refusal(fixture.create(&served, &job).await).1.contains("limit")),
            }
        }
        let result = fixture.wait_result(&served, "a").await;
        assert!(result.data.unwrap()["logs"].contains("a line"));
        fixture.wait_job_deleted(&served, "a").await;
        let untouched = fixture.jobs(&other).get("a").await.unwrap();
        let ours = untouched.metadata.annotations.unwrap_or_default().into_keys();
        assert_eq!(ours.filter(|key| key.starts_with("job-handler/")).count(), 0);
        let spec = untouched.spec.unwrap();
        assert_eq!(spec.ttl_seconds_after_finished, None, "it is not stamped either");
        assert!(fixture.config_maps(&other).get_opt("a-results").await.unwrap().is_none());

        let user = format!("--as=system:serviceaccount:{NAMESPACE}:job-handler-sink");
        for right in [
            "get configmaps",
            "list configmaps",
            "create configmaps",
            "delete configmaps",
            "list pods",
            "get pods --subresource=log",
            "patch jobs",
            "delete jobs",
            "create events.events.k8s.io",
        ] {
            let right: Vec<&str> = right.split(' ').collect();
            for (namespace, allowed) in [(served.name(), true), (other.name(), false), ("kube-system", false)]
            {
                let ask = [&["auth", "can-i", "-n", namespace, &user][..], &right].concat();
                let answer = fixture.cluster.try_kubectl(&ask, b"").await.unwrap();
                assert_eq!(answer.success, allowed, "{ask:?}: {answer:?}");
            }
        }
        let log = std::fs::read_to_string(fixture.cluster.audit_log().unwrap()).unwrap();
        let denied: Vec<&str> = log.lines().filter(|line| is_denied(line)).collect();
        assert!(denied.is_empty(), "{denied:#?}");
        // Before the cluster ends.
        drop((served, other));
    });
}

/// Narrows the installed pair to one namespace, with what `overlays/namespaces` has for `ci`.
async fn narrow(fixture: &Fixture, namespace: &str) {
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/namespaces/rbac.yaml");
    let rights = std::fs::read_to_string(overlay).unwrap();
    assert!(rights.contains("namespace: ci\n"));
    let rights = rights.replace("namespace: ci\n", &format!("namespace: {namespace}\n"));
    fixture.cluster.kubectl_with_input(&["apply", "-f", "-"], &rights).await.unwrap();
    fixture.cluster.kubectl(&["delete", "clusterrolebinding", "job-handler-sink"]).await.unwrap();
    let expression = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace]});
    let selector = json!({"matchExpressions": [expression]});
    patch_stamping_webhooks(fixture.client(), &[("namespaceSelector", selector)]).await.unwrap();
    let sink = fixture.pair.sink();
    sink.restart().unwrap();
    sink.wait_ready(PATIENCE).await.unwrap();
}

async fn apply_cluster_policy(fixture: &Fixture, name: &str, spec: Value) {
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name}, "spec": spec,
    });
    let api: Api<ClusterJobPolicy> = Api::all(fixture.client());
    api.patch(name, &PatchParams::apply("scenario").force(), &Patch::Apply(&policy)).await.unwrap();
    fixture
        .wait(&format!("ClusterJobPolicy {name} to be Ready"), || async {
            let conditions =
                api.get(name).await.map_err(|e| e.to_string())?.status.unwrap_or_default().conditions;
            match conditions.iter().find(|condition| condition.type_ == "Ready") {
                Some(ready) if ready.status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

/// Whether a line of the audit log says that the sink lacked a right.
fn is_denied(line: &str) -> bool {
    let Ok(entry) = serde_json::from_str::<Value>(line) else { return false };
    entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with("job-handler-sink/"))
        && entry["annotations"]["authorization.k8s.io/decision"] == "forbid"
}
