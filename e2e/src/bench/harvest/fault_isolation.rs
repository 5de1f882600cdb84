//! The harvest of healthy Jobs beside faulty ones, compared with a harvest beside as many other healthy Jobs.

use std::time::Instant;

use crate::bench::harvest::cluster::{HarvestCluster, wait_harvested};
use crate::bench::harvest::disturbance::{self, Disturbance};
use crate::bench::seed::{LOG_BYTES, request_results};
use crate::bench::table::{Aim, Table, figure, median, median_ratio};
use crate::harness::error::{Error, Result};

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct FaultIsolationSizes {
    /// Rounds. Each measures every disturbance once.
    pub rounds: usize,
    /// Healthy Jobs whose harvest is measured.
    pub jobs: usize,
    /// Faulty Jobs of each kind.
    pub faulty: usize,
    /// Pods of the Job with many pods.
    pub pods: usize,
    /// Whether to measure each disturbance alone as well, not only all at once.
    pub each: bool,
}

impl FaultIsolationSizes {
    /// Small sizes, as a smoke test.
    pub const QUICK: Self = Self { rounds: 1, jobs: 20, faulty: 4, pods: 12, each: false };
}

impl Default for FaultIsolationSizes {
    /// About five minutes on two cores.
    fn default() -> Self {
        Self { rounds: 3, jobs: 300, faulty: 40, pods: 1_000, each: true }
    }
}

/// The rate beside faulty Jobs, and beside as many healthy ones.
#[derive(Clone, Debug)]
pub struct FaultComparison {
    /// Jobs per second beside faulty Jobs.
    pub disturbed: f64,
    /// Jobs per second beside other healthy Jobs.
    pub undisturbed: f64,
    /// The namespace of each disturbance.
    pub namespaces: Vec<(Disturbance, String)>,
}

impl FaultComparison {
    /// The disturbed rate divided by the undisturbed rate.
    pub fn ratio(&self) -> f64 {
        self.disturbed / self.undisturbed
    }
}

/// Boots a cluster and measures.
///
/// # Errors
/// If something does not start, or a result is missing.
pub async fn measure(sizes: FaultIsolationSizes) -> Result<Table> {
    let mut rows: Vec<(String, Vec<Disturbance>)> = match sizes.each {
        true => Disturbance::ALL.iter().map(|one| (one.name().to_owned(), vec![*one])).collect(),
        false => Vec::new(),
    };
    rows.push(("all of them at once".to_owned(), Disturbance::ALL.to_vec()));
    let namespaces = rows.iter().map(|(_, all)| namespaces(all)).sum::<usize>() * sizes.rounds;
    let mut bench = start(namespaces).await?;
    let mut measured: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); rows.len()];
    for round in 0..sizes.rounds {
        for ((_, disturbances), (disturbed, undisturbed)) in rows.iter().zip(&mut measured) {
            // Alternate which side runs first.
            if round % 2 == 0 {
                undisturbed.push(bench.undisturbed_rate(disturbances, sizes).await?);
            }
            let (rate, fault_namespaces) = bench.disturbed_rate(disturbances, sizes).await?;
            disturbed.push(rate);
            bench.end_disturbances(&fault_namespaces).await?;
            if round % 2 == 1 {
                undisturbed.push(bench.undisturbed_rate(disturbances, sizes).await?);
            }
        }
    }
    Ok(table(sizes, rows.into_iter().map(|(name, _)| name).zip(measured)))
}

/// Boots the cluster with this number of namespaces.
///
/// # Errors
/// If something does not start.
pub async fn start(namespaces: usize) -> Result<HarvestCluster> {
    HarvestCluster::start(namespaces, Some(disturbance::sink_configuration())).await
}

/// The number of namespaces that one comparison uses.
pub fn namespaces(disturbances: &[Disturbance]) -> usize {
    3 + disturbances.len()
}

impl HarvestCluster {
    /// Harvests healthy Jobs undisturbed, then beside faulty Jobs. The disturbances continue until
    /// [`Self::end_disturbances`].
    ///
    /// # Errors
    /// If a result is missing, or a disturbance has no effect.
    pub async fn compare(
        &mut self,
        disturbances: &[Disturbance],
        sizes: FaultIsolationSizes,
    ) -> Result<FaultComparison> {
        let undisturbed = self.undisturbed_rate(disturbances, sizes).await?;
        let (disturbed, namespaces) = self.disturbed_rate(disturbances, sizes).await?;
        Ok(FaultComparison { disturbed, undisturbed, namespaces })
    }

    /// Jobs per second beside as many other healthy Jobs as there would be faulty ones.
    async fn undisturbed_rate(
        &mut self,
        disturbances: &[Disturbance],
        sizes: FaultIsolationSizes,
    ) -> Result<f64> {
        let (measured, others) = (self.next_namespace()?, self.next_namespace()?);
        let count = |one: &Disturbance| if *one == Disturbance::ManyPods { 1 } else { sizes.faulty };
        let other_jobs = disturbances.iter().map(count).sum();
        self.seed(&others, "healthy", other_jobs, true).await?;
        self.seed(&measured, "healthy", sizes.jobs, true).await?;
        let client = self.cluster.client();
        request_results(&client, &others).await?;
        let begin = Instant::now();
        request_results(&client, &measured).await?;
        wait_harvested(&client, &measured, sizes.jobs).await?;
        let rate = sizes.jobs as f64 / begin.elapsed().as_secs_f64();
        wait_harvested(&client, &others, other_jobs).await?;
        Ok(rate)
    }

    /// Jobs per second beside faulty Jobs, and the namespaces of the faulty Jobs.
    async fn disturbed_rate(
        &mut self,
        disturbances: &[Disturbance],
        sizes: FaultIsolationSizes,
    ) -> Result<(f64, Vec<(Disturbance, String)>)> {
        let (client, measured) = (self.cluster.client(), self.next_namespace()?);
        self.seed(&measured, "healthy", sizes.jobs, true).await?;
        let mut fault_namespaces = Vec::new();
        for disturbance in disturbances {
            let namespace = self.next_namespace()?;
            self.prepare(*disturbance, &namespace, sizes.faulty, sizes.pods).await?;
            fault_namespaces.push((*disturbance, namespace));
        }
        for (disturbance, namespace) in &fault_namespaces {
            self.begin(*disturbance, namespace).await?;
        }
        let deletions =
            fault_namespaces.iter().filter(|(disturbance, _)| *disturbance == Disturbance::Deleted);
        let deletions = deletions.map(|(_, namespace)| self.delete_faulty(namespace, sizes.faulty));
        let deletions = futures::future::try_join_all(deletions);
        let harvest = async {
            let begin = Instant::now();
            request_results(&client, &measured).await?;
            wait_harvested(&client, &measured, sizes.jobs).await?;
            Ok(sizes.jobs as f64 / begin.elapsed().as_secs_f64())
        };
        let (rate, _) = futures::future::try_join(harvest, deletions).await?;
        for (disturbance, namespace) in &fault_namespaces {
            let no_results = matches!(disturbance, Disturbance::Quota | Disturbance::Terminating);
            if no_results && !self.results(namespace).await?.is_empty() {
                return Err(Error::Invalid(format!("results are stored despite {}", disturbance.name())));
            }
        }
        Ok((rate, fault_namespaces))
    }
}

fn table(sizes: FaultIsolationSizes, rows: impl Iterator<Item = (String, (Vec<f64>, Vec<f64>))>) -> Table {
    let columns = ["beside", "Jobs/s", "undisturbed Jobs/s", "vs. undisturbed"];
    let mut table = Table::new("Harvest beside faulty Jobs", &columns);
    let mut lowest = f64::INFINITY;
    for (name, (disturbed, undisturbed)) in rows {
        let ratio = median_ratio(&disturbed, &undisturbed);
        lowest = lowest.min(ratio);
        table.rows.push(vec![name, figure(median(disturbed)), figure(median(undisturbed)), figure(ratio)]);
    }
    table.aims.push(Aim {
        what: "at least 0.90 of the undisturbed rate, beside each".to_owned(),
        found: figure(lowest),
        met: lowest >= 0.9,
    });
    let FaultIsolationSizes { rounds, jobs, faulty, pods, .. } = sizes;
    table.notes.push(format!(
        "{rounds} rounds; each harvests {jobs} healthy Jobs beside {faulty} faulty ones of each kind (one Job with {pods} \
         pods), and {jobs} beside as many other healthy ones. All have a log of {LOG_BYTES} bytes, on the same two nodes."
    ));
    table.notes.push(
        "Bottleneck: the cores, which are shared with the faulty Jobs. Faulty Jobs that cost more calls than a healthy \
         one (two attempts to store, a thousand logs) lower the rate."
            .to_owned(),
    );
    table
}
