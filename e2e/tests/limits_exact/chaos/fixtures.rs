//! The cluster, the pair with three webhook replicas, and the limits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions,
    etcd_history::{STORE_JSON, follow_writes},
    wait_for,
};
use job_handler_shared::policy::spec::{ClusterJobPolicy, JobPolicy};
use k8s_openapi::api::{batch::v1::Job, core::v1::Namespace};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    figures::ChaosFigures,
    load::run_clients,
    outages::{OutageRhythm, disturb},
    slot_check::SlotCheck,
};
use crate::fixtures::PATIENCE;

/// The limits are the same in both; that of the cluster counts both together.
pub const NAMESPACES: [&str; 2] = ["chaos-a", "chaos-b"];

pub const FEW: &str = "chaos.test/few";
pub const SOME: &str = "chaos.test/some";
pub const OVERLAP: &str = "chaos.test/overlap";
pub const APP: &str = "chaos.test/app";

/// A limit, in a policy of the same name, which selects the Jobs that have a label.
#[derive(Debug)]
pub struct ChaosLimit {
    pub name: &'static str,
    pub label: &'static str,
    pub scope: &'static str,
    pub max: usize,
}

/// A Job can have any of the labels, so that each two of them overlap. Small, because a create that was cut off holds a
/// slot, and a large limit would be reached seldom.
pub static LIMITS: [ChaosLimit; 4] = [
    ChaosLimit { name: "few", label: FEW, scope: "Cluster", max: 4 },
    ChaosLimit { name: "some", label: SOME, scope: "Namespace", max: 3 },
    ChaosLimit { name: "overlap", label: OVERLAP, scope: "Namespace", max: 2 },
    ChaosLimit { name: "one-per-group", label: APP, scope: "Group", max: 1 },
];

pub struct ChaosFixture {
    // Dropped in this order.
    pub pair: Pair,
    pub cluster: Cluster,
    pub apiservers: usize,
}

impl ChaosFixture {
    pub async fn start(apiservers: usize) -> Self {
        let cluster = Cluster::start(ClusterOptions {
            apiservers,
            // The check reads a write before it can be compacted, or fails; this only leaves it more time.
            apiserver_arguments: vec![STORE_JSON.to_owned(), "--etcd-compaction-interval=0".to_owned()],
            ..ClusterOptions::default()
        })
        .await
        .unwrap();
        let pair =
            Pair::install(&cluster, PairOptions { webhooks: 3, ..PairOptions::default() }).await.unwrap();
        let fixture = Self { pair, cluster, apiservers };
        fixture.apply_limits().await;
        fixture
    }

    /// Clients without retries, one for each API server.
    pub fn clients(&self) -> Vec<Client> {
        let configs = self.cluster.apiserver_configs().into_iter();
        configs
            .map(|mut config| {
                config.default_retry = false;
                Client::try_from(config).unwrap()
            })
            .collect()
    }

    /// Load, outages and check for the given time.
    pub async fn run(self, seed: u64, length: Duration, soak: bool) -> ChaosFigures {
        let check = Arc::new(Mutex::new(SlotCheck::default()));
        let (theirs, etcd) = (Arc::clone(&check), self.cluster.etcd().unwrap());
        let following = tokio::spawn(async move {
            let why = follow_writes(etcd, |write| theirs.lock().see(&write)).await;
            panic!("the history is incomplete: {why}");
        });
        let rhythm = if soak { OutageRhythm::SOAK } else { OutageRhythm::SHORT };
        let (start, stop) = (Instant::now(), CancellationToken::new());
        let clock = async {
            // On a busy machine a short run goes on until it has reached every limit.
            while start.elapsed() < length
                || (!check.lock().unreached().is_empty() && start.elapsed() < PATIENCE)
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            stop.cancel();
        };
        let (clients, outages, ()) =
            tokio::join!(run_clients(&self, seed, &stop), disturb(&self, rhythm, seed, &stop), clock);
        let took = start.elapsed();
        self.wait_for_last_write(&check).await;
        following.abort();
        // Fails with the reason, if it ended before.
        assert!(following.await.is_err_and(|error| error.is_cancelled()), "the history is incomplete");
        let check = std::mem::take(&mut *check.lock());
        ChaosFigures { apiservers: self.apiservers, seed, took, clients, outages, check }
    }

    /// Everything before it is checked once this write is.
    async fn wait_for_last_write(&self, check: &Mutex<SlotCheck>) {
        let jobs: Api<Job> = Api::namespaced(self.clients().swap_remove(0), "default");
        let last: Job = serde_json::from_value(json!({
            "metadata": {"name": "last"}, "spec": {"suspend": true, "template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}},
        }))
        .unwrap();
        let create = || async {
            match jobs.create(&PostParams::default(), &last).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                other => other.map(drop),
            }
        };
        wait_for(PATIENCE, "the last create", create).await.unwrap();
        wait_for(PATIENCE, "the last write to be checked", || async {
            if check.lock().knows("default/last") { Ok(()) } else { Err("not seen") }
        })
        .await
        .unwrap();
    }

    async fn apply_limits(&self) {
        let client = self.cluster.client();
        for name in NAMESPACES {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        for limit in &LIMITS {
            let mut spec = json!({
                "jobSelector": {"matchExpressions": [{"key": limit.label, "operator": "Exists"}]},
                "limits": [{"name": limit.name, "maxActiveJobs": limit.max, "scope": limit.scope}],
            });
            if limit.scope == "Cluster" {
                let selected =
                    json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": NAMESPACES});
                spec["namespaceSelector"] = json!({"matchExpressions": [selected]});
                let policies: Api<ClusterJobPolicy> = Api::all(client.clone());
                apply(&policies, limit.name, "ClusterJobPolicy", &spec).await;
                continue;
            }
            if limit.scope == "Group" {
                spec["group"] = json!({"type": "Labels", "labelKeys": [limit.label]});
            }
            for namespace in NAMESPACES {
                let policies: Api<JobPolicy> = Api::namespaced(client.clone(), namespace);
                apply(&policies, limit.name, "JobPolicy", &spec).await;
            }
        }
    }
}

/// Applies a policy and waits until it is in force.
async fn apply<K>(policies: &Api<K>, name: &str, kind: &str, spec: &Value)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    wait_for(PATIENCE, &format!("{kind} {name} to be Ready"), || async {
        let (params, policy) = (PatchParams::apply("test").force(), Patch::Apply(&policy));
        let applied = policies.patch(name, &params, &policy).await.map_err(|error| error.to_string())?;
        let stored = serde_json::to_value(applied).map_err(|error| error.to_string())?;
        let conditions = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        if ready { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await
    .unwrap();
}
