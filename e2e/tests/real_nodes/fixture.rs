//! The cluster with a real node that all scenarios of this binary share.

use std::sync::OnceLock;
use std::time::Duration;

use job_handler_e2e::build::pair_programs;
use job_handler_e2e::cluster::E2E_KUBECONFIG;
use job_handler_e2e::harness::progress::print_line;
use job_handler_e2e::pair::install_in_pods;
use job_handler_e2e::real_node::{BUSYBOX_IMAGE, missing_for_real_node};
use job_handler_e2e::{Cluster, ClusterOptions, wait_for};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// How long a scenario waits for a condition: containers start slowly where other tests keep the machine busy.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The cluster, with the pair in pods.
pub struct RealCluster {
    pub cluster: Cluster,
}

/// All scenarios share a runtime, so that clients of the cluster outlive each scenario.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// Runs a scenario, or says that it is skipped.
pub fn scenario<F: Future<Output = ()>>(name: &str, run: impl FnOnce(&'static RealCluster) -> F) {
    static FIXTURE: OnceCell<RealCluster> = OnceCell::const_new();
    scenario_without_cluster(name, || async { run(FIXTURE.get_or_init(RealCluster::start).await).await });
}

/// The same, for a scenario that does not use the shared cluster.
pub fn scenario_without_cluster<F: Future<Output = ()>>(name: &str, run: impl FnOnce() -> F) {
    let existing = std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty());
    let missing = match existing {
        true => Some(format!("unset {E2E_KUBECONFIG}: it starts a cluster of its own")),
        false => missing_for_real_node(),
    };
    match missing {
        Some(missing) => print_line(&format!("SKIPPED: real_nodes::{name}: {missing}")),
        None => runtime().block_on(run()),
    }
}

impl RealCluster {
    async fn start() -> Self {
        let options = ClusterOptions { real_node: true, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await.unwrap();
        install_in_pods(&cluster).await.unwrap();
        Self { cluster }
    }

    /// Applies a JobPolicy that harvests every Job of the namespace, and waits until it is in force.
    pub async fn harvest_everything(&self, namespace: &str) {
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "results", "namespace": namespace}, "spec": {"results": {}},
        });
        self.cluster.kubectl_with_input(&["apply", "-f", "-"], &policy.to_string()).await.unwrap();
        self.wait_policy(namespace, "results").await;
    }

    /// Waits until a JobPolicy is in force.
    pub async fn wait_policy(&self, namespace: &str, name: &str) {
        let policy = format!("jobpolicy/{name}");
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let wait = ["wait", "--for=condition=Ready", &policy, "-n", namespace, &timeout];
        self.cluster.kubectl(&wait).await.unwrap();
    }

    pub async fn create(&self, namespace: &str, object: &Value) -> Result<(), String> {
        let create = ["create", "-n", namespace, "-f", "-"];
        let output = self.cluster.try_kubectl(&create, object.to_string().as_bytes()).await.unwrap();
        if output.success { Ok(()) } else { Err(output.stderr) }
    }

    /// An object as JSON.
    pub async fn get(&self, namespace: &str, object: &str) -> Result<Value, String> {
        let get = ["get", object, "-n", namespace, "-o", "json"];
        let text = self.cluster.kubectl(&get).await.map_err(|error| error.to_string())?;
        Ok(serde_json::from_str(&text).unwrap())
    }

    /// Waits for the result of a Job; returns its status and its manifest.
    pub async fn wait_result(&self, namespace: &str, job: &str) -> (String, Value) {
        let object = format!("configmap/{job}-results");
        let result = wait_for(PATIENCE, &object, || self.get(namespace, &object)).await.unwrap();
        let text = |key: &str| result["data"][key].as_str().unwrap().to_owned();
        (text("status"), serde_json::from_str(&text("result.json")).unwrap())
    }

    /// The log of the container `main`, as `kubectl job-results` reads it from the result.
    pub async fn stored_log(&self, namespace: &str, job: &str) -> Vec<u8> {
        let mut command = tokio::process::Command::new(pair_programs().unwrap().join("kubectl-job_results"));
        command.args(["logs", job, "-n", namespace, "-c", "main", "--raw"]);
        let output = command.env("KUBECONFIG", self.cluster.kubeconfig()).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

/// A Job whose only container runs a shell script as its first process.
pub fn shell_job(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 10,
            "containers": [{"name": "main", "image": BUSYBOX_IMAGE, "command": ["sh", "-c", script]}],
        }}},
    })
}
