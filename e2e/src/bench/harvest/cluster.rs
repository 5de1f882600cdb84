//! A cluster on which Jobs finish only because the benchmark writes their status.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use crate::bench::seed::{SeedJobs, seed};
use crate::bench::watch::next_event;
use crate::cluster::namespace::TestNamespace;
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::pair::{Pair, PairOptions};

/// The longest wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// The cluster, with the Job controller and the simulated nodes paused.
#[derive(Debug)]
pub struct HarvestCluster {
    // Dropped in this order.
    namespaces: Vec<TestNamespace>,
    used: usize,
    /// The pair.
    pub pair: Pair,
    /// The cluster.
    pub cluster: Cluster,
}

impl HarvestCluster {
    /// Boots a cluster and creates this number of namespaces for [`Self::next_namespace`].
    ///
    /// # Errors
    /// If something does not start.
    pub async fn start(namespaces: usize, sink_configuration: Option<Value>) -> Result<Self> {
        let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
        let cluster = Cluster::start(options).await?;
        let options = PairOptions {
            log: "warn".to_owned(),
            sink_configuration: sink_configuration.map(|configuration| configuration.to_string()),
            ..PairOptions::default()
        };
        let pair = Pair::install(&cluster, options).await?;
        let created = stream::iter(0..namespaces).map(|_| cluster.namespace("bench")).buffer_unordered(8);
        let namespaces = created.try_collect().await?;
        cluster.component(Component::ControllerManager)?.stop()?;
        cluster.component(Component::Kwok)?.stop()?;
        Ok(Self { namespaces, used: 0, pair, cluster })
    }

    /// The results of a namespace.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn results(&self, namespace: &str) -> Result<Vec<ConfigMap>> {
        let params = ListParams::default().labels("job-handler/created=true");
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), namespace);
        Ok(api.list(&params).await.map_err(Error::api("listing results"))?.items)
    }

    /// The sink's process id.
    pub(super) fn sink(&self) -> u32 {
        self.pair.sink().process().id()
    }

    /// Returns a namespace that was not used yet.
    pub(super) fn next_namespace(&mut self) -> Result<String> {
        let next = self.namespaces.get(self.used);
        self.used += 1;
        let none = || Error::Invalid("all namespaces are used".to_owned());
        Ok(next.ok_or_else(none)?.name().to_owned())
    }

    /// Creates Jobs with logs.
    pub(super) async fn seed(
        &self,
        namespace: &str,
        prefix: &str,
        jobs: usize,
        finished: bool,
    ) -> Result<SeedJobs> {
        let seeded = SeedJobs { finished, ..SeedJobs::with_logs(namespace, prefix, jobs) };
        seed(&self.cluster, &seeded).await?;
        Ok(seeded)
    }

    /// The manifest of a Job's result, once it is stored.
    pub(super) async fn wait_result(&self, namespace: &str, job: &str) -> Result<Value> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), namespace);
        let name = format!("{job}-results");
        wait_for(PATIENCE, &format!("the result {name}"), || async {
            let map = maps.get(&name).await.map_err(|error| error.to_string())?;
            let text = map.data.unwrap_or_default().remove("result.json").unwrap_or_default();
            serde_json::from_str(&text).map_err(|error| error.to_string())
        })
        .await
    }
}

/// Waits for this number of complete results whose Events are published.
pub(super) async fn wait_harvested(client: &Client, namespace: &str, jobs: usize) -> Result<()> {
    let api: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels("job-handler/created=true");
    let mut events = watcher(api, config).boxed();
    let mut harvested = std::collections::BTreeSet::new();
    let all = async {
        while harvested.len() < jobs {
            if let Some(Event::Apply(map) | Event::InitApply(map)) = next_event(&mut events).await?
                && !map.labels().contains_key("job-handler/announce")
            {
                harvested.insert(map.name_any());
            }
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    waited.unwrap_or_else(|_| {
        let last = format!("{} of {jobs}", harvested.len());
        Err(Error::Timeout { what: format!("the results of {namespace}"), waited: PATIENCE, last })
    })
}
