//! The base install on an empty cluster: everything that `kubectl apply -k manifests/base` creates, before any of our
//! programs runs. KWOK simulates the pods, so no image is pulled.

use std::time::Duration;

use job_handler_e2e::{Cluster, ClusterOptions, wait_for};
use serde_json::{Value, json};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base");
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples");

#[tokio::test]
async fn the_base_installs_on_an_empty_cluster_in_one_command() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    if !cluster.is_own() {
        eprintln!("skipped: the base may already be installed on an existing cluster");
        return;
    }
    one_apply_creates_everything(&cluster).await;
    pods_are_admitted_and_spread(&cluster).await;
    an_outage_blocks_no_job(&cluster).await;
    the_webhook_is_called_only_for_requests_that_it_stamps(&cluster).await;
    applying_again_keeps_the_ca_bundle_and_the_paths(&cluster).await;
    the_samples_are_accepted(&cluster).await;
}

async fn one_apply_creates_everything(cluster: &Cluster) {
    let output = cluster.kubectl(&["apply", "-k", BASE]).await.unwrap();
    assert!(output.lines().all(|line| line.ends_with(" created")), "{output}");
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
    cluster.kubectl(&established).await.unwrap();
    // kubectl compares with the last applied manifest, but always sends the PodDisruptionBudget's selector again.
    let again = cluster.kubectl(&["apply", "-k", BASE]).await.unwrap();
    let changed: Vec<&str> = again
        .lines()
        .filter(|l| !l.ends_with(" unchanged") && !l.starts_with("poddisruptionbudget"))
        .collect();
    assert!(changed.is_empty(), "{changed:?}");
}

/// Pod Security `restricted` is enforced by the real apiserver; a pod that violates it is not created.
async fn pods_are_admitted_and_spread(cluster: &Cluster) {
    let namespace = ["-n", "job-handler-system"];
    let rollout =
        [&namespace[..], &["rollout", "status", "deployment/job-handler", "--timeout=60s"]].concat();
    cluster.kubectl(&rollout).await.unwrap();
    let nodes = "jsonpath={.items[*].spec.nodeName}";
    let pods = [&namespace[..], &["get", "pods", "-o", nodes]].concat();
    let nodes = cluster.kubectl(&pods).await.unwrap();
    let nodes: Vec<&str> = nodes.split(' ').collect();
    assert_eq!(nodes.len(), 2);
    assert_ne!(nodes[0], nodes[1], "both replicas on one node");
    let broken = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "broken", "namespace": "job-handler-system"},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    });
    let refused = cluster.try_kubectl(&["create", "-f", "-"], broken.to_string().as_bytes()).await.unwrap();
    assert!(!refused.success && refused.stderr.contains("restricted"), "{refused:?}");
}

/// Nothing answers behind the Service, and Jobs are still created.
async fn an_outage_blocks_no_job(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "outage"]).await.unwrap();
    create(cluster, "free", "outage").await.unwrap();
}

/// Tests with a copy of the configuration that fails closed and has an unreachable URL: the error of a request names
/// the webhook that the apiserver called.
async fn the_webhook_is_called_only_for_requests_that_it_stamps(cluster: &Cluster) {
    let get = ["get", "mutatingwebhookconfiguration", "job-handler", "-o", "json"];
    let mut probe: Value = serde_json::from_str(&cluster.kubectl(&get).await.unwrap()).unwrap();
    probe["metadata"] = json!({"name": "probe"});
    let [creates, updates] = probe["webhooks"].as_array_mut().unwrap().as_mut_slice() else {
        panic!("expected two webhooks, for creates and for updates");
    };
    for (webhook, name) in
        [(creates, "creates.probe.job-handler.io"), (updates, "updates.probe.job-handler.io")]
    {
        webhook["name"] = name.into();
        webhook["failurePolicy"] = "Fail".into();
        webhook["clientConfig"] = json!({"url": "https://127.0.0.1:1/mutate"});
    }
    cluster.kubectl_with_input(&["create", "-f", "-"], &probe.to_string()).await.unwrap();
    wait_for(Duration::from_secs(60), "the apiserver to load the copied configuration", || async {
        match create(cluster, "new", "outage").await {
            Err(error) if error.contains("creates.probe.job-handler.io") => Ok(()),
            other => {
                let delete = ["delete", "job", "new", "-n", "outage", "--ignore-not-found"];
                cluster.kubectl(&delete).await.unwrap();
                Err(format!("{other:?}"))
            }
        }
    })
    .await
    .unwrap();
    // Creates in excluded namespaces are not sent.
    create(cluster, "excluded", "kube-system").await.unwrap();
    create(cluster, "excluded", "job-handler-system").await.unwrap();
    let patches = [
        (r#"{"metadata":{"labels":{"a":"b"}}}"#, false),
        (r#"{"spec":{"suspend":false}}"#, false),
        (r#"{"spec":{"parallelism":2}}"#, false),
        (r#"{"spec":{"ttlSecondsAfterFinished":60}}"#, true),
        (r#"{"spec":{"activeDeadlineSeconds":60}}"#, true),
        (r#"{"spec":{"backoffLimit":2}}"#, true),
    ];
    for (patch, sent) in patches {
        let arguments = ["patch", "job", "free", "-n", "outage", "-p", patch];
        let answer = cluster.try_kubectl(&arguments, b"").await.unwrap();
        assert_eq!(!answer.success, sent, "{patch}: {answer:?}");
        assert_eq!(answer.stderr.contains("updates.probe.job-handler.io"), sent, "{patch}: {answer:?}");
    }
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "probe"]).await.unwrap();
}

async fn applying_again_keeps_the_ca_bundle_and_the_paths(cluster: &Cluster) {
    // The apiserver accepts only a valid certificate, so this is the CA of the cluster.
    let ca = "jsonpath={.data.ca\\.crt}";
    let ca =
        cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "-n", "default", "-o", ca]).await.unwrap();
    let bundle = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, ca);
    let secret = "/2-1-0/mutate";
    let add = |n: usize, field: &str, value: &str| json!({"op": "add", "path": format!("/webhooks/{n}/clientConfig/{field}"), "value": value});
    let operations = [0, 1].map(|n| [add(n, "caBundle", &bundle), add(n, "service/path", secret)]).concat();
    let patch = json!(operations).to_string();
    let configuration = ["mutatingwebhookconfiguration", "job-handler"];
    let write = [&["patch"], &configuration[..], &["--type=json", "-p", &patch]].concat();
    cluster.kubectl(&write).await.unwrap();
    let applies: [&[&str]; 3] = [
        &["apply", "-k", BASE],
        &["apply", "--server-side", "--force-conflicts", "-k", BASE],
        &["apply", "--server-side", "-k", BASE],
    ];
    for apply in applies {
        cluster.kubectl(apply).await.unwrap();
        for (field, value) in [("caBundle", bundle.as_str()), ("service.path", secret)] {
            let path = format!("jsonpath={{.webhooks[*].clientConfig.{field}}}");
            let read = [&["get"], &configuration[..], &["-o", &path]].concat();
            assert_eq!(cluster.kubectl(&read).await.unwrap(), format!("{value} {value}"), "after {apply:?}");
        }
    }
}

async fn the_samples_are_accepted(cluster: &Cluster) {
    let output = cluster.kubectl(&["apply", "-f", SAMPLES]).await.unwrap();
    assert_eq!(output.matches("job-handler.io/").count(), 3, "{output}");
    // The sink creates the default policy from this ConfigMap, so the apiserver must accept it unchanged.
    let policy = "jsonpath={.data.job-handler-default\\.yaml}";
    let get = ["get", "configmap", "job-handler-defaults", "-n", "job-handler-system", "-o", policy];
    let policy = cluster.kubectl(&get).await.unwrap();
    cluster.kubectl_with_input(&["create", "--dry-run=server", "-f", "-"], &policy).await.unwrap();
}

async fn create(cluster: &Cluster, name: &str, namespace: &str) -> Result<(), String> {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
        "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}],
        }}},
    });
    let answer = cluster.try_kubectl(&["create", "-f", "-"], job.to_string().as_bytes()).await.unwrap();
    if answer.success { Ok(()) } else { Err(answer.stderr) }
}
