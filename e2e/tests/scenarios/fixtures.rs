//! The cluster that the scenarios of this binary share, with the pair installed from `manifests/`.

use std::{collections::BTreeMap, fmt::Debug, future::Future, sync::OnceLock, time::Duration};

use job_handler_e2e::{
    Cluster, ClusterOptions, Member, Pair, PairOptions, cluster::E2E_KUBECONFIG, wait_for,
};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::ConfigMap, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::OnceCell};

/// The sink's account, the only one that the admission policy lets write results.
const SINK_ACCOUNT: &str = "--as=system:serviceaccount:job-handler-system:job-handler-sink";

/// How long a scenario waits for a condition.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster and the pair.
pub struct Fixture {
    pub cluster: Cluster,
    pub pair: Pair,
}

/// All scenarios share a runtime, so that clients and tasks of the fixture outlive each scenario.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

/// Runs a scenario on the shared cluster.
pub fn scenario<F: Future<Output = ()>>(run: impl FnOnce(&'static Fixture) -> F) {
    static FIXTURE: OnceCell<Fixture> = OnceCell::const_new();
    runtime().block_on(async { run(FIXTURE.get_or_init(Fixture::start).await).await });
}

/// Runs a scenario on its own cluster, because it would disturb others.
pub fn exclusive_scenario(run: impl AsyncFnOnce(&Fixture)) {
    exclusive_scenario_with_replicas(1, run);
}

/// The same, for a scenario that sets up its own fixture.
pub fn exclusive_scenario_with_own_cluster(run: impl AsyncFnOnce()) {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it needs a cluster of its own, not that of {E2E_KUBECONFIG}");
        return;
    }
    runtime().block_on(async { run().await });
}

/// The same, with this number of webhooks and of sinks.
pub fn exclusive_scenario_with_replicas(replicas: usize, run: impl AsyncFnOnce(&Fixture)) {
    exclusive_scenario_with_options(PairOptions { webhooks: replicas, ..PairOptions::default() }, run);
}

/// The same, with these options of the pair.
pub fn exclusive_scenario_with_options(pair: PairOptions, run: impl AsyncFnOnce(&Fixture)) {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("skipped: it would disturb other users of the cluster of {E2E_KUBECONFIG}");
        return;
    }
    runtime().block_on(async { run(&Fixture::start_with(pair).await).await });
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(PairOptions::default()).await
    }

    async fn start_with(pair: PairOptions) -> Self {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let pair = Pair::install(&cluster, pair).await.unwrap();
        Self { cluster, pair }
    }

    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    pub fn jobs(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.client(), namespace)
    }

    pub fn config_maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client(), namespace)
    }

    pub fn policies(&self, namespace: &str) -> Api<JobPolicy> {
        Api::namespaced(self.client(), namespace)
    }

    /// Applies a JobPolicy and waits until it is in force.
    pub async fn apply_policy(&self, namespace: &str, name: &str, spec: Value) {
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        let api = self.policies(namespace);
        let applied =
            api.patch(name, &PatchParams::apply("scenario").force(), &Patch::Apply(&policy)).await.unwrap();
        self.wait_policy_ready(namespace, name, applied.metadata.generation).await;
    }

    /// Waits until this generation of a JobPolicy is in force.
    pub async fn wait_policy_ready(&self, namespace: &str, name: &str, generation: Option<i64>) {
        let api = self.policies(namespace);
        self.wait(&format!("JobPolicy {namespace}/{name} to be Ready"), || async {
            let status = api.get(name).await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            match ready {
                Some(Condition { status, observed_generation, .. })
                    if status == "True" && *observed_generation == generation =>
                {
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    pub async fn create(&self, namespace: &str, job: &Value) -> kube::Result<Job> {
        let job: Job = serde_json::from_value(job.clone()).unwrap();
        self.jobs(namespace).create(&PostParams::default(), &job).await
    }

    /// Creates an object with the keys of results, as anybody could before the admission policy was installed.
    pub async fn create_past_admission_policy(&self, namespace: &str, object: &Value) {
        let command = ["create", "-n", namespace, SINK_ACCOUNT, "-f", "-"];
        self.cluster.kubectl_with_input(&command, &object.to_string()).await.unwrap();
    }

    /// Edits an object, such as `job/build`, as users could before the admission policies were installed.
    pub async fn edit_past_admission_policy(&self, namespace: &str, object: &str, change: &Value) {
        let change = change.to_string();
        let command = ["patch", object, "-n", namespace, SINK_ACCOUNT, "--type=merge", "-p", &change];
        self.cluster.kubectl(&command).await.unwrap();
    }

    /// Waits for the result of a Job.
    pub async fn wait_result(&self, namespace: &str, job: &str) -> ConfigMap {
        let api = self.config_maps(namespace);
        let name = format!("{job}-results");
        self.wait(&format!("the result {namespace}/{name}"), || async {
            api.get(&name).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// The Events with this reason about an object.
    pub async fn events(&self, namespace: &str, reason: &str, object: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.client(), namespace);
        let selector = format!("reason={reason}");
        let all = api.list(&ListParams::default().fields(&selector)).await.unwrap();
        all.items
            .into_iter()
            .filter(|e| e.regarding.as_ref().is_some_and(|r| r.name.as_deref() == Some(object)))
            .collect()
    }

    pub async fn wait<T, E, F>(&self, condition: &str, poll: impl FnMut() -> F) -> T
    where
        E: Debug + std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        wait_for(PATIENCE, condition, poll).await.unwrap()
    }

    /// Waits until a program is not ready, with this reason.
    pub async fn wait_not_ready(&self, member: &Member, reason: &str) {
        self.wait(&format!("{} not to be ready because of {reason}", member.name()), || async {
            match member.get("/readyz").await {
                Ok((503, body)) if body.contains(reason) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Waits until the Job is deleted.
    pub async fn wait_job_deleted(&self, namespace: &str, job: &str) {
        let api = self.jobs(namespace);
        self.wait(&format!("Job {namespace}/{job} to be deleted"), || async {
            match api.get_opt(job).await {
                Ok(None) => Ok(()),
                Ok(Some(job)) => Err(format!("{:?}", job.status)),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
}

/// A Job with these labels, and these annotations for its simulated pods (without their prefix).
pub fn job(name: &str, labels: &[(&str, &str)], simulation: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    let simulation: BTreeMap<_, _> =
        simulation.iter().map(|(k, v)| (format!("e2e.job-handler.io/{k}"), *v)).collect();
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {"template": {
            "metadata": {"annotations": simulation},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
        }},
    })
}

/// Status code and message of a call that must fail.
pub fn refusal<T: Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// An annotation, or the empty string.
pub fn annotation<'a>(job: &'a Job, key: &str) -> &'a str {
    job.annotations().get(key).map_or("", String::as_str)
}
