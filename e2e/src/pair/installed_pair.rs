//! Installs and starts the pair.

use std::net::Ipv4Addr;
use std::time::Duration;

use job_handler_shared::keys::{DEFAULT_POLICY, MUTATING_CONFIGURATION};
use job_handler_shared::policy::spec::ClusterJobPolicy;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;

use crate::build::{pair_programs, run_cancellable};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::net::load_balancer::{Backend, LoadBalancer};
use crate::pair::install;
use crate::pair::member::{self, Member};
use crate::pair::options::{E2E_WEBHOOK_HOST, PairOptions};

/// The installed pair. When it is dropped, its processes end, and it is uninstalled from an existing cluster.
#[derive(Debug)]
pub struct Pair {
    // Dropped in this order: first the processes, then their resources.
    webhooks: Vec<Member>,
    sinks: Vec<Member>,
    balancer: LoadBalancer,
    /// Uninstalls when it is dropped.
    _installed: install::Installation,
    client_config: kube::Config,
}

impl Pair {
    /// Builds the pair, applies the manifests, starts the processes, and waits until the API server calls the webhook
    /// and the default policy is in force.
    ///
    /// # Errors
    /// If a build or `kubectl apply` fails, or a process does not become ready.
    pub async fn install(cluster: &Cluster, options: PairOptions) -> Result<Self> {
        if options.webhooks == 0 {
            return Err(Error::Invalid("a pair needs at least one webhook".to_owned()));
        }
        let programs = run_cancellable(pair_programs).await?;
        // An existing cluster may be on another machine.
        let elsewhere =
            std::env::var(E2E_WEBHOOK_HOST).ok().filter(|host| !cluster.is_own() && !host.is_empty());
        let on = if elsewhere.is_some() { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let balancer = LoadBalancer::start(on, &[])?;
        // To `localhost` or 127.0.0.1 the API server speaks HTTP/2 over one connection, which one replica would serve
        // alone; to any other host it speaks HTTP/1.1, as to a Service (k8s.io/apiserver/pkg/util/webhook/client.go,
        // isLocalHost). 0.0.0.0 is not local there, but Go's dialer connects to the local system.
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
            _installed: installed,
        };
        pair.route_to_webhooks();
        pair.wait_ready(Duration::from_secs(60)).await?;
        install::wait_called(cluster, Duration::from_secs(60)).await?;
        if sinks > 0 {
            wait_default_policy(cluster, Duration::from_secs(60)).await?;
        }
        Ok(pair)
    }

    /// One of the webhook replicas.
    ///
    /// # Panics
    /// If the index is too large.
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

    /// The load balancer that the API server connects to.
    pub fn balancer(&self) -> &LoadBalancer {
        &self.balancer
    }

    /// Routes new connections to the replicas' current ports.
    pub fn route_to_webhooks(&self) {
        let backend = |member: &Member| Backend {
            address: (Ipv4Addr::LOCALHOST, member.port()).into(),
            admin: Some((Ipv4Addr::LOCALHOST, member.admin_port()).into()),
        };
        self.balancer.set_backends(&self.webhooks.iter().map(backend).collect::<Vec<_>>());
    }

    /// Waits until every process is ready and the webhook configuration has its caBundle.
    ///
    /// # Errors
    /// [`Error::ProcessExited`] if a process exited, [`Error::Timeout`] if one is not ready in time.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        for member in self.webhooks.iter().chain(&self.sinks) {
            member.wait_ready(within).await?;
        }
        let client =
            kube::Client::try_from(self.client_config.clone()).map_err(Error::api("creating a client"))?;
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

/// The manifests contain the default policy in a ConfigMap; the leader of the sinks creates it.
pub(super) async fn wait_default_policy(cluster: &Cluster, within: Duration) -> Result<()> {
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
