//! Boots a cluster and measures all tables on it.

use std::time::Duration;

use crate::bench::harvest::cluster::HarvestCluster;
use crate::bench::harvest::{lag, sink_cost, throughput};
use crate::bench::table::{Table, sized};
use crate::bench::{cleanup_latency, environment, machine};
use crate::harness::error::Result;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct HarvestSizes {
    /// Rounds. Each harvests as many Jobs by the sink as by the loop.
    pub rounds: usize,
    /// Jobs per round and side.
    pub jobs: usize,
    /// Jobs that finish one after the other, for the lag.
    pub steady: usize,
    /// How many of them finish per second.
    pub per_second: u32,
    /// Bytes of the one large log.
    pub large: u64,
    /// How long the idle sink is measured.
    pub idle: Duration,
}

impl Default for HarvestSizes {
    /// About seven minutes on two cores.
    fn default() -> Self {
        Self {
            rounds: 5,
            jobs: 1_000,
            steady: 600,
            per_second: 20,
            large: 100 << 20,
            idle: Duration::from_secs(20),
        }
    }
}

impl HarvestSizes {
    /// Small sizes, as a smoke test.
    pub const QUICK: Self = Self {
        rounds: 1,
        jobs: 20,
        steady: 10,
        per_second: 20,
        large: 2 << 20,
        idle: Duration::from_millis(200),
    };

    /// Sizes from the environment: `BENCH_HARVEST_JOBS` (per round and side), `BENCH_HARVEST_ROUNDS` and
    /// `BENCH_IDLE_SECONDS`.
    ///
    /// # Errors
    /// If a variable is not a number.
    pub fn from_environment(self) -> Result<Self> {
        let idle = match environment::number("BENCH_IDLE_SECONDS", 0)? {
            0 => self.idle,
            seconds => Duration::from_secs(seconds as u64),
        };
        let jobs = environment::number("BENCH_HARVEST_JOBS", self.jobs)?;
        let rounds = environment::number("BENCH_HARVEST_ROUNDS", self.rounds)?;
        Ok(Self { idle, jobs, rounds, ..self })
    }

    /// The number of Jobs in the cluster after all rounds.
    pub(super) fn total_jobs(self) -> usize {
        2 * self.rounds * self.jobs
    }

    pub(super) fn title(self, title: &str) -> String {
        sized(title, self.total_jobs(), Self::default().total_jobs())
    }
}

/// Boots a cluster and measures.
///
/// # Errors
/// If something does not start, or a result is missing.
pub async fn measure(sizes: HarvestSizes) -> Result<Vec<Table>> {
    let mut bench = HarvestCluster::start(2 * sizes.rounds + 2, None).await?;
    let empty = machine::memory(bench.sink())?;
    let throughput = throughput::measure(&mut bench, sizes).await?;
    let full = machine::memory(bench.sink())?;

    let title = sizes.title("Harvest lag, memory and idle cost of the sink");
    let mut table = Table::new(&title, &["measurement", "value", "unit"]);
    let namespace = bench.next_namespace()?;
    lag::measure(&bench, &namespace, sizes, &mut table).await?;
    let last = bench.next_namespace()?;
    let cleanup = cleanup_latency::measure(&bench.cluster, &last, sizes.steady, sizes.per_second).await?;
    sink_cost::memory(&mut table, sizes, empty, full);
    sink_cost::large_log(&bench, &namespace, sizes, &mut table).await?;
    sink_cost::idle_and_restarts(&bench, &namespace, sizes, &mut table).await?;
    Ok(vec![throughput, table, cleanup])
}
