//! Creates finished Jobs by the thousand: their status is written by the benchmark, no controller runs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use job_handler_shared::keys::{API_GROUP, API_VERSION};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::cluster::jobs::PREFIX;
use crate::harness::error::{Error, Result};

/// Bytes of a Job's log.
pub const LOG_BYTES: u64 = 2 << 10;
/// Concurrent writers.
const WRITERS: usize = 16;

/// The Jobs to create.
#[derive(Clone, Debug)]
pub struct SeedJobs {
    /// Their namespace.
    pub namespace: String,
    /// The prefix of their names.
    pub prefix: String,
    /// Their number.
    pub jobs: usize,
    /// A label and the number of its values, which are assigned round-robin.
    pub groups: Option<(String, usize)>,
    /// Each Job has a finished pod with a log of this many bytes.
    pub log_bytes: Option<u64>,
    /// `ttlSecondsAfterFinished`.
    pub ttl: Option<i32>,
    /// Whether the Jobs are finished, or only their pods.
    pub finished: bool,
}

impl SeedJobs {
    /// Unfinished Jobs, each with a finished pod and a log of [`LOG_BYTES`].
    pub fn with_logs(namespace: &str, prefix: &str, jobs: usize) -> Self {
        Self {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            jobs,
            groups: None,
            log_bytes: Some(LOG_BYTES),
            ttl: None,
            finished: false,
        }
    }

    /// The name of the `n`th Job.
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

/// Creates the Jobs.
///
/// # Errors
/// If the API server refuses one.
pub async fn seed(cluster: &Cluster, seed: &SeedJobs) -> Result<()> {
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
                create(&client, &seed, n, &nodes[n % nodes.len().max(1)]).await?;
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.map_err(|error| Error::Invalid(format!("a writer panicked: {error}")))??;
    }
    Ok(())
}

async fn create(client: &Client, seed: &SeedJobs, n: usize, node: &str) -> Result<()> {
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", seed.namespace);
    let job = send(client, "POST", &jobs, &seed.job(n)).await?;
    if let Some(bytes) = seed.log_bytes {
        let pods = format!("/api/v1/namespaces/{}/pods", seed.namespace);
        let (pod, status) = pod(&job, &seed.name(n), node, bytes);
        let pod = send(client, "POST", &pods, &pod).await?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        send(client, "PATCH", &format!("{pods}/{name}/status"), &status).await?;
    }
    if seed.finished { complete(client, &seed.namespace, &seed.name(n)).await } else { Ok(()) }
}

/// Writes the status of a Job that completed just now.
///
/// # Errors
/// If the API server refuses.
pub async fn complete(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let reason = ("CompletionsReached", "Reached expected number of succeeded pods");
    // The same time for both: the API server refuses a completion time before the start time.
    let now = now();
    let status = json!({"startTime": now, "completionTime": now, "succeeded": 1});
    finish(client, namespace, name, status, ["SuccessCriteriaMet", "Complete"], reason).await
}

/// Writes the status of a Job that failed just now.
///
/// # Errors
/// If the API server refuses.
pub async fn fail(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let reason = ("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    let status = json!({"startTime": now(), "failed": 1});
    finish(client, namespace, name, status, ["FailureTarget", "Failed"], reason).await
}

async fn finish(
    client: &Client,
    namespace: &str,
    name: &str,
    mut status: Value,
    conditions: [&str; 2],
    (reason, message): (&str, &str),
) -> Result<()> {
    let now = now();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastProbeTime": now, "lastTransitionTime": now})
    };
    status["ready"] = 0.into();
    status["terminating"] = 0.into();
    status["uncountedTerminatedPods"] = json!({});
    status["conditions"] = conditions.map(condition).to_vec().into();
    let uri = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}/status");
    send(client, "PATCH", &uri, &json!({"status": status})).await.map(drop)
}

/// Runs `write` for each of the Jobs at this rate.
///
/// # Errors
/// If a write fails.
pub async fn steadily<F>(seeded: &SeedJobs, per_second: u32, write: impl Fn(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    let mut writes = JoinSet::new();
    for n in 0..seeded.jobs {
        ticks.tick().await;
        writes.spawn(write(seeded.name(n)));
    }
    while let Some(done) = writes.join_next().await {
        done.map_err(|error| Error::Invalid(format!("a writer panicked: {error}")))??;
    }
    Ok(())
}

/// A succeeded pod of the Job, and its status.
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

/// Creates a policy that harvests all Jobs of a namespace.
///
/// # Errors
/// If the API server refuses.
pub async fn request_results(client: &Client, namespace: &str) -> Result<()> {
    create_policy(client, namespace, json!({"results": {}})).await
}

/// Creates the policy `bench` in a namespace.
///
/// # Errors
/// If the API server refuses.
pub async fn create_policy(client: &Client, namespace: &str, spec: Value) -> Result<()> {
    let policy = json!({
        "apiVersion": format!("{API_GROUP}/{API_VERSION}"), "kind": "JobPolicy",
        "metadata": {"name": "bench", "namespace": namespace}, "spec": spec,
    });
    let uri = format!("/apis/{API_GROUP}/{API_VERSION}/namespaces/{namespace}/jobpolicies");
    send(client, "POST", &uri, &policy).await.map(drop)
}

/// Sends a request and returns the answer. A patch is a merge patch.
///
/// # Errors
/// If the answer is not a success.
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
