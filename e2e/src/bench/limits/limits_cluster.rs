//! The cluster of the benchmark: each method of limiting has namespaces of its own.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use job_handler_shared::keys;
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::bench::reviews;
use crate::bench::server::{BenchServer, Handler};
use crate::bench::variants::{self, api, create, url_at};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::net::load_balancer::{Backend, LoadBalancer};
use crate::net::metrics;
use crate::pair::{Pair, PairOptions, patch_stamping_webhooks};

/// Webhook replicas that are installed.
const REPLICAS: usize = 3;
/// More Jobs than any measurement creates.
const UNREACHED: u32 = 1_000_000;
/// Prefix of the namespaces that our webhooks are called for.
const OURS: &str = "ours";

pub(super) struct LimitsCluster {
    // Dropped in this order.
    pub(super) pair: Pair,
    pub(super) null: BenchServer,
    balancer: LoadBalancer,
    /// Does not retry a 503 by itself.
    client: Client,
    pub(super) cluster: Cluster,
}

/// The limit of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamespaceLimit {
    /// No limit.
    None,
    /// A `ResourceQuota` of `count/jobs.batch`.
    Quota(u32),
    /// A policy of ours with `whenFull: Reject`.
    Policy(u32),
    /// A policy of ours with `whenFull: Queue`.
    Queue(u32),
}

/// The name of a method's `n`th namespace.
pub(super) fn namespace(method: &str, n: usize) -> String {
    format!("{method}-{n}")
}

impl LimitsCluster {
    /// Installs the pair and the null webhooks on a cluster, creates this number of namespaces for each method, and
    /// waits until everything is in force.
    pub(super) async fn set_up(cluster: Cluster, program: &Path, namespaces: usize) -> Result<Self> {
        // CRDs first: the apiserver then spends some seconds on its OpenAPI document.
        let options = PairOptions {
            webhooks: REPLICAS,
            sinks: Some(1),
            log: "warn".to_owned(),
            // Reviews are also sent to one path for minutes.
            webhook_arguments: vec!["--path-rotation-seconds=0".to_owned()],
            ..PairOptions::default()
        };
        let pair = Pair::install(&cluster, options).await?;
        let null = BenchServer::start(program, Handler::Null, "null-0")?;
        // Behind a load balancer, like our webhooks.
        let balancer = LoadBalancer::start(Ipv4Addr::LOCALHOST, &[Backend::on(null.address().port())])?;
        let mut config = cluster.config().clone();
        config.default_retry = false;
        let client = Client::try_from(config).map_err(Error::api("creating a client"))?;
        let bench = Self { pair, null, balancer, client, cluster };
        for n in 0..namespaces {
            bench.namespace(&namespace("none", n), NamespaceLimit::None).await?;
            bench.namespace(&namespace("quota", n), NamespaceLimit::Quota(UNREACHED)).await?;
            bench.namespace(&namespace("null", n), NamespaceLimit::None).await?;
            bench.namespace(&namespace("null-quota", n), NamespaceLimit::Quota(UNREACHED)).await?;
            bench.namespace(&namespace(OURS, n), NamespaceLimit::Policy(UNREACHED)).await?;
        }
        bench.restrict_webhooks(namespaces).await?;
        Ok(bench)
    }

    /// Creates a namespace and its limit.
    pub(super) async fn namespace(&self, name: &str, limit: NamespaceLimit) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"bench": name.rsplit_once('-').map_or(name, |(method, _)| method)}},
        });
        create(&self.cluster, "", "v1", "Namespace", &namespace).await?;
        match limit {
            NamespaceLimit::None => Ok(()),
            NamespaceLimit::Quota(max) => self.quota(name, max).await,
            NamespaceLimit::Policy(max) => self.policy(name, "builds", max, "Reject").await,
            NamespaceLimit::Queue(max) => self.policy(name, "builds", max, "Queue").await,
        }
    }

    /// Creates a namespace with several policies that have the same limit.
    pub(super) async fn overlapping(&self, name: &str, max: u32, policies: usize) -> Result<()> {
        self.namespace(name, NamespaceLimit::None).await?;
        for n in 0..policies {
            self.policy(name, &format!("builds-{n}"), max, "Reject").await?;
        }
        Ok(())
    }

    async fn quota(&self, namespace: &str, max: u32) -> Result<()> {
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "jobs", "namespace": namespace},
            "spec": {"hard": {"count/jobs.batch": max.to_string()}},
        });
        create(&self.cluster, "", "v1", "ResourceQuota", &quota).await?;
        let quotas = api(&self.cluster, "", "v1", "ResourceQuota", Some(namespace));
        wait_for(Duration::from_secs(60), "the quota to be in force", || async {
            let quota = quotas.get("jobs").await.map_err(|error| error.to_string())?;
            if quota.data["status"]["hard"].is_object() { Ok(()) } else { Err(quota.data.to_string()) }
        })
        .await
    }

    async fn policy(&self, namespace: &str, name: &str, max: u32, when_full: &str) -> Result<()> {
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"limits": [{"name": "few", "maxActiveJobs": max, "whenFull": when_full}]},
        });
        create(&self.cluster, keys::API_GROUP, keys::API_VERSION, "JobPolicy", &policy).await?;
        let policies = api(&self.cluster, keys::API_GROUP, keys::API_VERSION, "JobPolicy", Some(namespace));
        wait_for(Duration::from_secs(60), "the policy to be Ready", || async {
            let policy = policies.get(name).await.map_err(|error| error.to_string())?;
            let conditions = policy.data["status"]["conditions"].as_array();
            let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            match conditions.is_some_and(|all| all.iter().any(is_ready)) {
                true => Ok(()),
                false => Err(policy.data["status"].to_string()),
            }
        })
        .await
    }

    /// Lets the apiserver call each webhook for its own namespaces only.
    async fn restrict_webhooks(&self, namespaces: usize) -> Result<()> {
        let ours = [OURS, "ours-full", "ours-queue", "ours-many"];
        patch_stamping_webhooks(self.cluster.client(), &[("namespaceSelector", selector(&ours))]).await?;
        for (kind, path) in
            [("MutatingWebhookConfiguration", "mutate"), ("ValidatingWebhookConfiguration", "validate")]
        {
            let configuration = json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                "metadata": {"name": format!("null-{path}.bench.job-handler.io")},
                "webhooks": [{
                    "name": format!("null-{path}.bench.job-handler.io"),
                    "admissionReviewVersions": ["v1"],
                    "clientConfig": {
                        "url": url_at(self.balancer.port(), path), "caBundle": STANDARD.encode(self.null.ca()),
                    },
                    "rules": [{
                        "apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"],
                        "operations": ["CREATE"],
                    }],
                    "namespaceSelector": selector(&["null", "null-quota", "null-full"]),
                    "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 10,
                }],
            });
            create(&self.cluster, "admissionregistration.k8s.io", "v1", kind, &configuration).await?;
        }
        let called = |name: &'static str| self.calls(name);
        for (method, webhook) in [
            ("null", "null-mutate.bench.job-handler.io"),
            ("null", "null-validate.bench.job-handler.io"),
            (OURS, keys::MUTATING_WEBHOOK),
        ] {
            wait_for(Duration::from_secs(120), &format!("{webhook} to be called"), || async {
                let before = called(webhook).await.map_err(|error| error.to_string())?;
                self.dry_run(&namespace(method, namespaces - 1)).await?;
                let after = called(webhook).await.map_err(|error| error.to_string())?;
                if after > before { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await?;
        }
        Ok(())
    }

    async fn calls(&self, webhook: &str) -> Result<u64> {
        variants::calls(&self.cluster, webhook).await
    }

    /// Routes reviews to this number of replicas. Returns once the apiserver has dropped its connections to others.
    pub(super) async fn use_replicas(&self, replicas: usize) -> Result<()> {
        let backend = |member: &crate::pair::Member| Backend::on(member.port());
        let backends: Vec<Backend> = self.pair.webhooks().iter().take(replicas).map(backend).collect();
        self.pair.balancer().set_backends(&backends);
        self.pair.balancer().close_connections();
        // A request that the apiserver was sending on a closed connection fails with status 500.
        wait_for(Duration::from_secs(60), "the apiserver to drop its closed connections", || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for _ in 0..3 {
                self.dry_run(&namespace(OURS, 0)).await?;
            }
            Ok::<(), String>(())
        })
        .await
    }

    async fn dry_run(&self, namespace: &str) -> Result<(), String> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let probe = reviews::job(namespace, "probe");
        let probe = serde_json::from_value(probe).map_err(|error| error.to_string())?;
        let dry_run = kube::api::PostParams { dry_run: true, ..kube::api::PostParams::default() };
        jobs.create(&dry_run, &probe).await.map(drop).map_err(|error| error.to_string())
    }

    /// The sum of a counter over all webhook replicas.
    pub(super) async fn counter(&self, name: &str) -> Result<f64> {
        let mut sum = 0.0;
        for webhook in self.pair.webhooks() {
            let (_, text) = webhook.get("/metrics").await?;
            sum += metrics::sum(&text, name, &[]);
        }
        Ok(sum)
    }

    /// Deletes all Jobs of a namespace.
    pub(super) async fn clear(&self, namespace: &str) -> Result<()> {
        variants::delete_jobs(&self.cluster, namespace).await
    }
}

fn selector(methods: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": "bench", "operator": "In", "values": methods}]})
}
