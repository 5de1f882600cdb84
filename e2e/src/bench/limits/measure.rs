//! Boots a cluster and measures all tables on it.

use std::path::Path;
use std::time::Duration;

use crate::bench::environment;
use crate::bench::limits::limits_cluster::LimitsCluster;
use crate::bench::limits::{creates, memory, overlap, queue_drain, refusals};
use crate::bench::table::Table;
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::Result;

/// How much to measure.
#[derive(Clone, Debug)]
pub struct LimitsEffort {
    /// Rounds. Each runs all methods once under the same load.
    pub rounds: usize,
    /// How long each method runs per round.
    pub time: Duration,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Numbers of namespaces that Jobs are created in.
    pub namespaces: Vec<usize>,
    /// Jobs that wait in a queue.
    pub queued: usize,
    /// Jobs in the cluster when memory is measured.
    pub stored: usize,
}

impl LimitsEffort {
    /// The usual sizes.
    pub fn full() -> Self {
        Self {
            rounds: 6,
            time: Duration::from_millis(800),
            clients: vec![1, 10, 50],
            namespaces: vec![1, 10],
            queued: 1000,
            stored: 10_000,
        }
    }

    /// Sizes from the environment: `BENCH_LIMITS_ROUNDS`, and `BENCH_LIMITS_CLIENTS` for this number of clients and one
    /// namespace only.
    ///
    /// # Errors
    /// If a variable is not a number.
    pub fn from_environment(mut self) -> Result<Self> {
        self.rounds = environment::number("BENCH_LIMITS_ROUNDS", self.rounds)?;
        let clients = environment::number("BENCH_LIMITS_CLIENTS", 0)?;
        if clients > 0 {
            (self.clients, self.namespaces) = (vec![clients], vec![1]);
        }
        Ok(self)
    }

    /// Small sizes, as a smoke test.
    pub fn quick() -> Self {
        Self {
            rounds: 1,
            time: Duration::from_millis(100),
            clients: vec![1, 4],
            namespaces: vec![1, 2],
            queued: 12,
            stored: 30,
        }
    }
}

/// Boots a cluster and measures. `program` is `bench-all`, which starts the servers; `report` gets each table as soon
/// as it is complete.
///
/// # Errors
/// If something does not start, or a Job is admitted or refused wrongly.
pub async fn measure(program: &Path, effort: &LimitsEffort, mut report: impl FnMut(Table)) -> Result<()> {
    // The audit log would write each request to disk.
    let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let max_namespaces = effort.namespaces.iter().copied().max().unwrap_or(1);
    let bench = LimitsCluster::set_up(cluster, program, max_namespaces).await?;
    // Pods are not created: only the creates are measured.
    bench.cluster.component(Component::ControllerManager)?.stop()?;
    creates::measure(&bench, effort).await?.into_iter().for_each(&mut report);
    report(overlap::measure(&bench, effort).await?);
    report(refusals::measure(&bench, effort).await?);
    report(queue_drain::measure(&bench, effort).await?);
    report(memory::measure(&bench, effort).await?);
    Ok(())
}
