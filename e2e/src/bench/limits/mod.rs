//! What limits cost: creates, refusals, queues that drain, memory. Always beside what Kubernetes has itself, behind webhooks
//! that do nothing.

mod creates;
mod drain;
mod ground;
mod memory;
mod refusals;
mod times;

use std::path::Path;
use std::time::Duration;

use super::report::Table;
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::Result;

pub use creates::Way;

/// How much to measure.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Rounds; each runs all ways once at the same load.
    pub rounds: usize,
    /// Time of each way in each round.
    pub time: Duration,
    /// Numbers of clients.
    pub clients: Vec<usize>,
    /// Numbers of namespaces that Jobs are created in.
    pub namespaces: Vec<usize>,
    /// Jobs that wait in a queue.
    pub queued: usize,
    /// Jobs in the cluster when memory is looked at.
    pub stored: usize,
}

impl Effort {
    /// For figures.
    pub fn whole() -> Self {
        Self {
            rounds: 6,
            time: Duration::from_millis(800),
            clients: vec![1, 10, 50],
            namespaces: vec![1, 10],
            queued: 1000,
            stored: 10_000,
        }
    }

    /// With the numbers that somebody wants instead: `BENCH_LIMITS_ROUNDS`; with `BENCH_LIMITS_CLIENTS` that many clients
    /// into one namespace alone.
    ///
    /// # Errors
    /// Where one is no number.
    pub fn from_environment(mut self) -> Result<Self> {
        self.rounds = super::wished("BENCH_LIMITS_ROUNDS", self.rounds)?;
        let clients = super::wished("BENCH_LIMITS_CLIENTS", 0)?;
        if clients > 0 {
            (self.clients, self.namespaces) = (vec![clients], vec![1]);
        }
        Ok(self)
    }

    /// To see that everything works.
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

/// Boots a cluster and measures, with servers of `program` (`bench-all` itself). `found` is told each table at once.
///
/// # Errors
/// If anything does not run, or is not decided as it should be.
pub async fn measure(program: &Path, effort: &Effort, mut found: impl FnMut(Table)) -> Result<()> {
    // The audit log would write each request to disk.
    let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let most = effort.namespaces.iter().copied().max().unwrap_or(1);
    let ground = ground::Ground::set_up(cluster, program, most).await?;
    // Nobody runs the Jobs: what follows a create is not what is measured.
    ground.cluster.component(Component::ControllerManager)?.stop()?;
    creates::measure(&ground, effort).await?.into_iter().for_each(&mut found);
    found(refusals::measure(&ground, effort).await?);
    found(drain::measure(&ground, effort).await?);
    found(memory::measure(&ground, effort).await?);
    Ok(())
}
