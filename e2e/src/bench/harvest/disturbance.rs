//! Faults of Jobs, and how they are caused.

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::bench::harvest::cluster::{HarvestCluster, PATIENCE};
use crate::bench::seed::{self, LOG_BYTES, complete, create_policy, request_results, send};
use crate::cluster::jobs::PREFIX;
use crate::harness::error::Result;
use crate::harness::wait::wait_for;

/// Concurrent writes.
const WRITERS: usize = 16;
/// The name of the CloudEvents receiver that is down.
const RECEIVER: &str = "down";

/// A fault of some Jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// A ResourceQuota denies every ConfigMap.
    Quota,
    /// An admission policy denies ConfigMaps with logs.
    Admission,
    /// Their namespace is terminating.
    Terminating,
    /// They are deleted during the harvest.
    Deleted,
    /// The node does not answer requests for their logs.
    HangingLogs,
    /// One Job has many pods.
    ManyPods,
    /// The receiver of their CloudEvents is down.
    ReceiverDown,
}

impl Disturbance {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Quota,
        Self::Admission,
        Self::Terminating,
        Self::Deleted,
        Self::HangingLogs,
        Self::ManyPods,
        Self::ReceiverDown,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quota => "an exhausted quota",
            Self::Admission => "logs denied by admission",
            Self::Terminating => "a terminating namespace",
            Self::Deleted => "Jobs deleted meanwhile",
            Self::HangingLogs => "log requests that hang, same nodes",
            Self::ManyPods => "a Job with many pods",
            Self::ReceiverDown => "a receiver that is down",
        }
    }
}

/// The sink's configuration that names the receiver. The first port is reserved: nothing listens there.
pub(super) fn sink_configuration() -> Value {
    json!({"cloudEventSinks": [{"name": RECEIVER, "url": "http://127.0.0.1:1/in"}]})
}

impl HarvestCluster {
    /// Creates finished Jobs and the fault that disturbs their harvest.
    pub(super) async fn prepare(
        &self,
        disturbance: Disturbance,
        namespace: &str,
        jobs: usize,
        pods: usize,
    ) -> Result<()> {
        let client = self.cluster.client();
        match disturbance {
            Disturbance::HangingLogs => {
                let seeded = self.seed(namespace, "faulty", jobs, false).await?;
                let hang = json!({"metadata": {"annotations": {format!("{PREFIX}log-hang"): "true"}}});
                for name in (0..jobs).map(|n| seeded.name(n)) {
                    let pod = format!("/api/v1/namespaces/{namespace}/pods/{name}-pod");
                    send(&client, "PATCH", &pod, &hang).await?;
                    complete(&client, namespace, &name).await?;
                }
            }
            Disturbance::ManyPods => self.seed_many_pods(namespace, pods).await?,
            Disturbance::Quota => {
                self.seed(namespace, "faulty", jobs, true).await?;
                let zero = json!({"count/configmaps": "0"});
                let quotas = format!("/api/v1/namespaces/{namespace}/resourcequotas");
                let quota = json!({"metadata": {"name": "full"}, "spec": {"hard": zero}});
                send(&client, "POST", &quotas, &quota).await?;
                // The quota controller, which writes the status, is paused.
                let status = json!({"status": {"hard": zero, "used": zero}});
                send(&client, "PATCH", &format!("{quotas}/full/status"), &status).await?;
            }
            Disturbance::Admission => {
                self.seed(namespace, "faulty", jobs, true).await?;
                self.deny_logs(namespace).await?;
            }
            Disturbance::Terminating | Disturbance::Deleted | Disturbance::ReceiverDown => {
                self.seed(namespace, "faulty", jobs, true).await?;
            }
        }
        Ok(())
    }

    /// Creates the policy that starts the harvest of the prepared Jobs.
    pub(super) async fn begin(&self, disturbance: Disturbance, namespace: &str) -> Result<()> {
        let client = self.cluster.client();
        if disturbance == Disturbance::ReceiverDown {
            let spec = json!({"results": {}, "cloudEventSinks": [{"name": RECEIVER}]});
            return create_policy(&client, namespace, spec).await;
        }
        if disturbance == Disturbance::HangingLogs {
            // The shortest deadline: until then, the sink keeps the Jobs and stores nothing.
            let spec = json!({"results": {"harvestDeadlineSeconds": 60}});
            return create_policy(&client, namespace, spec).await;
        }
        request_results(&client, namespace).await?;
        if disturbance == Disturbance::Terminating {
            // It remains terminating, because the namespace controller is paused.
            send(&client, "DELETE", &format!("/api/v1/namespaces/{namespace}"), &Value::Null).await?;
        }
        Ok(())
    }

    /// Deletes the prepared Jobs.
    pub(super) async fn delete_faulty(&self, namespace: &str, jobs: usize) -> Result<()> {
        let client = self.cluster.client();
        for n in 0..jobs {
            let job = format!("/apis/batch/v1/namespaces/{namespace}/jobs/faulty-{n:06}");
            send(&client, "DELETE", &format!("{job}?propagationPolicy=Background"), &Value::Null).await?;
        }
        Ok(())
    }

    /// Ends disturbances: waits for the harvests that can still succeed, and deletes the policies.
    ///
    /// # Errors
    /// If a result is missing.
    pub async fn end_disturbances(&self, namespaces: &[(Disturbance, String)]) -> Result<()> {
        for (disturbance, namespace) in namespaces {
            if matches!(
                disturbance,
                Disturbance::HangingLogs | Disturbance::ManyPods | Disturbance::ReceiverDown
            ) {
                let jobs = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
                let all = send(&self.cluster.client(), "GET", &jobs, &Value::Null).await?;
                let expected = all["items"].as_array().map_or(0, Vec::len);
                wait_for(PATIENCE, &format!("the results of {}", disturbance.name()), || async {
                    let now = self.results(namespace).await.map_err(|error| error.to_string())?.len();
                    if now == expected { Ok(()) } else { Err(format!("{now} of {expected}")) }
                })
                .await?;
            }
            let policy = format!("/apis/job-handler.io/v1alpha1/namespaces/{namespace}/jobpolicies/bench");
            send(&self.cluster.client(), "DELETE", &policy, &Value::Null).await?;
        }
        Ok(())
    }

    async fn seed_many_pods(&self, namespace: &str, pods: usize) -> Result<()> {
        // The seed creates the first pod.
        let name = self.seed(namespace, "faulty", 1, false).await?.name(0);
        let client = self.cluster.client();
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}");
        let job = send(&client, "GET", &path, &Value::Null).await?;
        let uri = format!("/api/v1/namespaces/{namespace}/pods");
        let creating = stream::iter(1..pods).map(|n| {
            let (mut pod, status) = seed::pod(&job, &name, &format!("node-{}", n % 2), LOG_BYTES);
            let (client, uri) = (client.clone(), uri.clone());
            async move {
                let name = format!("faulty-{n:06}-pod");
                pod["metadata"]["name"] = name.clone().into();
                send(&client, "POST", &uri, &pod).await?;
                send(&client, "PATCH", &format!("{uri}/{name}/status"), &status).await
            }
        });
        creating.buffer_unordered(WRITERS).try_collect::<Vec<_>>().await?;
        complete(&client, namespace, &name).await
    }

    /// Creates an admission policy that denies ConfigMaps with logs, and waits until it is in force.
    async fn deny_logs(&self, namespace: &str) -> Result<()> {
        let client = self.cluster.client();
        let group = "/apis/admissionregistration.k8s.io/v1";
        let name = format!("no-logs-{namespace}");
        let policy = json!({
            "metadata": {"name": name},
            "spec": {"failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]},
                "validations": [{"expression": "!has(object.data) || !('logs' in object.data)",
                    "message": "no logs here"}]},
        });
        send(&client, "POST", &format!("{group}/validatingadmissionpolicies"), &policy).await?;
        let binding = json!({
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector":
                    {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}},
        });
        send(&client, "POST", &format!("{group}/validatingadmissionpolicybindings"), &binding).await?;
        let probe = json!({"metadata": {"name": "probe"}, "data": {"logs": "x"}});
        let maps = format!("/api/v1/namespaces/{namespace}/configmaps?dryRun=All");
        wait_for(PATIENCE, "the admission policy to be in force", || async {
            match send(&client, "POST", &maps, &probe).await {
                Err(_) => Ok(()),
                Ok(_) => Err("a log is admitted"),
            }
        })
        .await
    }
}
