//! Finished Jobs by the thousand: their status is written, while nobody runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use job_handler_shared::keys::{API_GROUP, API_VERSION};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::cluster::jobs::PREFIX;
use crate::harness::error::{Error, Result};

/// Clients that write at the same time.
const WRITERS: usize = 16;

/// What to seed.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Into which namespace.
    pub namespace: String,
    /// The Jobs' names begin so.
    pub prefix: String,
    /// How many.
    pub jobs: usize,
    /// Label and number of its values, which the Jobs take in turns.
    pub groups: Option<(String, usize)>,
    /// Each has a pod that has ended, with so many bytes of log.
    pub log_bytes: Option<u64>,
    /// `ttlSecondsAfterFinished`.
    pub ttl: Option<i32>,
    /// Whether they have finished; else only their pods have.
    pub finished: bool,
}

impl Seed {
    /// The name of one of them.
    pub fn name(&self, n: usize) -> String {
        format!("{}-{n:06}", self.prefix)
    }

    fn job(&self, n: usize) -> Value {
        let mut job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": self.name(n), "labels": {}},
            "spec": {"backoffLimit": 0, "template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox:1.37", "command": ["true"]}],
            }}},
        });
        if let Some((label, values)) = &self.groups {
            job["metadata"]["labels"][label] = format!("group-{}", n % values.max(&1)).into();
        }
        if let Some(ttl) = self.ttl {
            job["spec"]["ttlSecondsAfterFinished"] = ttl.into();
        }
        job
    }
}

/// Makes them all.
///
/// # Errors
/// If the API server refuses any of it.
pub async fn seed(cluster: &Cluster, seed: &Seed) -> Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client());
    let nodes = nodes.list(&ListParams::default()).await.map_err(Error::api("listing the nodes"))?;
    let nodes: Arc<Vec<String>> = Arc::new(nodes.items.iter().map(ResourceExt::name_any).collect());
    let (next, seed) = (Arc::new(AtomicUsize::new(0)), Arc::new(seed.clone()));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS.min(seed.jobs) {
        let (client, next, seed, nodes) = (cluster.client(), next.clone(), seed.clone(), nodes.clone());
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= seed.jobs {
                    return Ok(());
                }
                one(&client, &seed, n, &nodes[n % nodes.len().max(1)]).await?;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.map_err(|error| Error::Invalid(format!("a writer panicked: {error}")))??;
    }
    Ok(())
}

async fn one(client: &Client, seed: &Seed, n: usize, node: &str) -> Result<()> {
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", seed.namespace);
    let made = send(client, "POST", &jobs, &seed.job(n)).await?;
    if let Some(bytes) = seed.log_bytes {
        let pods = format!("/api/v1/namespaces/{}/pods", seed.namespace);
        let (pod, status) = pod(&made, &seed.name(n), node, bytes);
        let pod = send(client, "POST", &pods, &pod).await?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        send(client, "PATCH", &format!("{pods}/{name}/status"), &status).await?;
    }
    if seed.finished { finish(client, &seed.namespace, &seed.name(n)).await } else { Ok(()) }
}

/// Writes that a Job has completed just now.
///
/// # Errors
/// If the API server refuses.
pub async fn finish(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let now = now();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "CompletionsReached", "message": "Reached expected number of \
            succeeded pods", "lastProbeTime": now, "lastTransitionTime": now})
    };
    let status = json!({"status": {
        "startTime": now, "completionTime": now, "succeeded": 1, "ready": 0, "terminating": 0,
        "uncountedTerminatedPods": {}, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
    }});
    send(client, "PATCH", &format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}/status"), &status)
        .await
        .map(drop)
}

/// A pod of the Job that has succeeded, and the status that says so.
pub(super) fn pod(job: &Value, name: &str, node: &str, log_bytes: u64) -> (Value, Value) {
    let uid = &job["metadata"]["uid"];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{name}-pod"),
            "labels": {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name},
            "annotations": {format!("{PREFIX}log-bytes"): log_bytes.to_string()},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true}],
        },
        "spec": {
            "restartPolicy": "Never", "nodeName": node,
            "containers": [{"name": "main", "image": "busybox:1.37", "command": ["true"]}],
        },
    });
    let (now, id) = (now(), format!("containerd://{:064x}", 7));
    let status = json!({"status": {"phase": "Succeeded", "startTime": now, "containerStatuses": [{
        "name": "main", "image": "busybox:1.37", "imageID": "", "ready": false, "restartCount": 0, "containerID": id,
        "state": {"terminated": {
            "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now, "containerID": id,
        }},
    }]}});
    (pod, status)
}

/// Lets a policy ask for the results of all Jobs of a namespace.
///
/// # Errors
/// If the API server refuses.
pub async fn ask_for_results(client: &Client, namespace: &str) -> Result<()> {
    let policy = json!({
        "apiVersion": format!("{API_GROUP}/{API_VERSION}"), "kind": "JobPolicy",
        "metadata": {"name": "bench", "namespace": namespace}, "spec": {"results": {}},
    });
    let uri = format!("/apis/{API_GROUP}/{API_VERSION}/namespaces/{namespace}/jobpolicies");
    send(client, "POST", &uri, &policy).await.map(drop)
}

/// A request whose answer has to be a success; a patch is a merge patch.
///
/// # Errors
/// If it is not.
pub async fn send(client: &Client, method: &str, uri: &str, body: &Value) -> Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let what = || format!("{method} {uri}");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder()
        .method(method)
        .uri(uri)
        .header(http::header::CONTENT_TYPE, kind)
        .body(body)
        .map_err(|error| Error::Invalid(format!("{}: {error}", what())))?;
    client.request(request).await.map_err(Error::api(what()))
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
