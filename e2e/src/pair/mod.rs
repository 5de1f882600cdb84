//! The pair on a cluster: the webhook and the sink as local processes, installed as manifests say, each
//! with the token of its own ServiceAccount and nothing more.

mod install;
mod member;
mod secrets;

use std::net::Ipv4Addr;
use std::time::Duration;

use job_handler_shared::keys::{DEFAULT_POLICY, MUTATING_CONFIGURATION};
use job_handler_shared::policy::spec::ClusterJobPolicy;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

pub use member::Member;
pub use secrets::{allow_secrets, forbid_secrets};

use crate::build::{beside, pair_programs};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::net::load_balancer::{Backend, LoadBalancer};

/// Names this machine as an existing cluster (`E2E_KUBECONFIG`) reaches it, for the webhook's address.
pub const E2E_WEBHOOK_HOST: &str = "E2E_WEBHOOK_HOST";

/// How the pair is installed.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// How many webhook replicas stand behind the balancer.
    pub webhooks: usize,
    /// How many sinks run; by default one beside each webhook. Webhook `i` hands its refusals to sink
    /// `i % sinks`.
    pub sinks: Option<usize>,
    /// More arguments for each webhook.
    pub webhook_arguments: Vec<String>,
    /// More arguments for each sink.
    pub sink_arguments: Vec<String>,
    /// Puts a proxy of its own between each webhook and the API server; see [`Member::proxy`].
    pub webhook_proxy: bool,
    /// Puts a proxy of its own between each sink and the API server.
    pub sink_proxy: bool,
    /// The sinks' configuration file, YAML; none by default.
    pub sink_configuration: Option<String>,
    /// More environment for each sink.
    pub sink_environment: Vec<(String, String)>,
    /// `RUST_LOG` of the programs, where the environment sets none.
    pub log: String,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            webhooks: 1,
            sinks: None,
            webhook_arguments: Vec::new(),
            sink_arguments: Vec::new(),
            webhook_proxy: false,
            sink_proxy: false,
            sink_configuration: None,
            sink_environment: Vec::new(),
            log: "info".to_owned(),
        }
    }
}

/// The installed pair. Its processes end when it is dropped; on an existing cluster what was installed is
/// then removed.
#[derive(Debug)]
pub struct Pair {
    // Dropped in this order: first the processes, then what they served.
    webhooks: Vec<Member>,
    sinks: Vec<Member>,
    balancer: LoadBalancer,
    installed: install::Installation,
    client_config: kube::Config,
}

impl Pair {
    /// Builds the pair, applies the base install with the address swapped, starts the processes and waits
    /// until Jobs pass through the webhook and the default policy is in force.
    ///
    /// # Errors
    /// If a build or `kubectl apply` fails, or a process does not get ready.
    pub async fn install(cluster: &Cluster, options: PairOptions) -> Result<Self> {
        if options.webhooks == 0 {
            return Err(Error::Invalid("a pair needs at least one webhook".to_owned()));
        }
        let programs = beside(pair_programs).await?;
        // An existing cluster may have to reach us from elsewhere.
        let elsewhere =
            std::env::var(E2E_WEBHOOK_HOST).ok().filter(|host| !cluster.is_own() && !host.is_empty());
        let on = if elsewhere.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let balancer = LoadBalancer::start(on, &[])?;
        // At «localhost» or 127.0.0.1 the API server would speak HTTP/2, one connection for everything, so
        // that one replica gets it all; anywhere else it speaks HTTP/1.1, as to a Service
        // (k8s.io/apiserver/pkg/util/webhook/client.go, isLocalHost). 0.0.0.0 is not thought local there, yet
        // Go's dialer goes to the local system.
        let host = elsewhere.unwrap_or_else(|| "0.0.0.0".to_owned());
        let url = format!("https://{host}:{}/mutate", balancer.port());
        let installed = install::apply(cluster, &url).await?;
        let names = [&*host, "127.0.0.1"];
        let sinks = options.sinks.unwrap_or(options.webhooks);
        let setup =
            member::PairSetup { cluster, programs: &programs, installed: &installed, options: &options };
        let pair = Self {
            sinks: (0..sinks).map(|index| setup.sink(index)).collect::<Result<_>>()?,
            webhooks: (0..options.webhooks)
                .map(|index| setup.webhook(index, index % sinks.max(1), &names))
                .collect::<Result<_>>()?,
            balancer,
            client_config: cluster.config().clone(),
            installed,
        };
        pair.route_to_webhooks();
        pair.wait_ready(Duration::from_secs(60)).await?;
        pair.installed.wait_called(cluster, Duration::from_secs(30)).await?;
        if sinks > 0 {
            wait_default_policy(cluster, Duration::from_secs(30)).await?;
        }
        Ok(pair)
    }

    /// One of the webhook replicas.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn webhook(&self, index: usize) -> &Member {
        &self.webhooks[index]
    }

    /// All webhook replicas.
    pub fn webhooks(&self) -> &[Member] {
        &self.webhooks
    }

    /// The first sink.
    ///
    /// # Panics
    /// If the pair was installed without sinks.
    pub fn sink(&self) -> &Member {
        &self.sinks[0]
    }

    /// All sinks.
    pub fn sinks(&self) -> &[Member] {
        &self.sinks
    }

    /// What the API server connects to.
    pub fn balancer(&self) -> &LoadBalancer {
        &self.balancer
    }

    /// Points the balancer at the replicas' ports of now.
    pub fn route_to_webhooks(&self) {
        let backend = |member: &Member| Backend {
            address: (Ipv4Addr::LOCALHOST, member.port()).into(),
            admin: Some((Ipv4Addr::LOCALHOST, member.admin_port()).into()),
        };
        self.balancer.set_backends(&self.webhooks.iter().map(backend).collect::<Vec<_>>());
    }

    /// Waits until every process says that it is ready, and the webhook configuration has its caBundle.
    ///
    /// # Errors
    /// [`Error::ProcessExited`] if a process ended, [`Error::Timeout`] if one is not ready in time.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        for member in self.webhooks.iter().chain(&self.sinks) {
            member.wait_ready(within).await?;
        }
        let client =
            kube::Client::try_from(self.client_config.clone()).map_err(Error::api("making a client"))?;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
        wait_for(within, "the caBundle of the webhook configuration", || async {
            let found =
                configurations.get(MUTATING_CONFIGURATION).await.map_err(|error| error.to_string())?;
            let mut hooks = found.webhooks.iter().flatten();
            let bundled =
                hooks.all(|hook| hook.client_config.ca_bundle.as_ref().is_some_and(|ca| !ca.0.is_empty()));
            if bundled { Ok(()) } else { Err("it has none yet".to_owned()) }
        })
        .await
    }
}

/// Sets fields (`clientConfig/url`) of both webhooks that stamp, the one of creates and the one of updates.
///
/// # Errors
/// If the API server refuses.
pub async fn patch_stamping_webhooks(client: kube::Client, fields: &[(&str, Value)]) -> Result<()> {
    let set = |n: usize, (field, value): &(&str, Value)| json!({"op": "add", "path": format!("/webhooks/{n}/{field}"), "value": value});
    let changes: Vec<Value> = (0..2).flat_map(|n| fields.iter().map(move |field| set(n, field))).collect();
    let changes = serde_json::from_value(changes.into())
        .map_err(|error| Error::Invalid(format!("a patch of {MUTATING_CONFIGURATION}: {error}")))?;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    configurations
        .patch(MUTATING_CONFIGURATION, &PatchParams::default(), &Patch::<()>::Json(changes))
        .await
        .map(drop)
        .map_err(Error::api("changing the webhooks that stamp"))
}

/// The base install carries its policy in a ConfigMap, from which the sink's leader creates it.
async fn wait_default_policy(cluster: &Cluster, within: Duration) -> Result<()> {
    let policies: Api<ClusterJobPolicy> = Api::all(cluster.client());
    wait_for(within, "the default policy to be in force", || async {
        let policy = policies.get(DEFAULT_POLICY).await.map_err(|error| error.to_string())?;
        let conditions = policy.status.unwrap_or_default().conditions;
        match conditions.iter().find(|condition| condition.type_ == "Ready") {
            Some(ready) if ready.status == "True" => Ok(()),
            other => Err(format!("its condition Ready is {other:?}")),
        }
    })
    .await
}

/// Applies `manifests/samples`: the policies of the image-build case and what they are for.
///
/// # Errors
/// If the API server refuses one.
pub async fn apply_samples(cluster: &Cluster) -> Result<()> {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples");
    cluster.kubectl(&["apply", "-f", &samples.display().to_string()]).await.map(drop)
}
