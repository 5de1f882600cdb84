//! The cluster, the pair with three webhook replicas, and the history.

use std::time::Duration;

use job_handler_e2e::{
    Cluster, ClusterOptions, History, Pair, PairOptions, etcd_history::STORE_JSON, wait_for,
};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::api::{batch::v1::Job, core::v1::Namespace};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// The longest wait for a condition.
pub const PATIENCE: Duration = Duration::from_secs(600);

pub struct BurstFixture {
    // Dropped in this order.
    pub history: History,
    pub pair: Pair,
    pub cluster: Cluster,
}

impl BurstFixture {
    pub async fn start() -> Self {
        let options =
            ClusterOptions { apiserver_arguments: vec![STORE_JSON.to_owned()], ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await.unwrap();
        let pair =
            Pair::install(&cluster, PairOptions { webhooks: 3, ..PairOptions::default() }).await.unwrap();
        let history = History::start(&cluster).await.unwrap();
        Self { history, pair, cluster }
    }

    /// Jobs through a new client, which has its own connection and does not retry: the test retries.
    pub fn jobs(&self, namespace: &str) -> Api<Job> {
        let mut config = self.cluster.config().clone();
        config.default_retry = false;
        Api::namespaced(Client::try_from(config).unwrap(), namespace)
    }

    /// A namespace that is not deleted before the cluster ends: deleting hundreds of Jobs would disturb the next round.
    pub async fn namespace(&self) -> String {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client());
        let namespace = serde_json::from_value(json!({"metadata": {"generateName": "burst-"}})).unwrap();
        let params = PostParams::default();
        let created = wait_for(PATIENCE, "a namespace", || namespaces.create(&params, &namespace));
        created.await.unwrap().metadata.name.unwrap()
    }

    /// Applies policies with this limit and waits until they are in force.
    pub async fn limit(&self, namespace: &str, max: usize, policies: usize) {
        for n in 0..policies {
            self.apply_policy(namespace, max, &format!("builds-{n}")).await;
        }
    }

    async fn apply_policy(&self, namespace: &str, max: usize, name: &str) {
        let policies: Api<JobPolicy> = Api::namespaced(self.cluster.client(), namespace);
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": name},
            "spec": {
                "stamp": {"backoffLimit": {"default": 2}},
                "limits": [{"name": "few", "maxActiveJobs": max}],
            },
        });
        wait_for(PATIENCE, "the policy to be Ready", || async {
            let (params, policy) = (PatchParams::apply("test").force(), Patch::Apply(&policy));
            let applied = policies.patch(name, &params, &policy).await.map_err(|e| e.to_string())?;
            let status = applied.status.unwrap_or_default();
            let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
        })
        .await
        .unwrap();
    }
}
