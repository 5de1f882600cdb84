//! Prunes of old Jobs: `job-handler-sink prune` compared with a script that lists everything and deletes, and with
//! Kubernetes' own TTL controller.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::process::Command;

use crate::bench::seed::{SeedJobs, seed};
use crate::bench::table::{Aim, Table, figure, median, median_ratio, sized, to_mib};
use crate::bench::watch::next_event;
use crate::bench::{environment, machine};
use crate::build::{pair_programs, run_cancellable};
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::{Error, Result};

/// The label that groups the Jobs.
const LABEL: &str = "argocd.argoproj.io/instance";
/// Concurrent deletions, of the command as of the script.
const CONCURRENT_DELETIONS: usize = 8;
/// The longest wait.
const PATIENCE: Duration = Duration::from_secs(900);

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct PruneSizes {
    /// Rounds. Each prunes as many Jobs by the command as by the script.
    pub rounds: usize,
    /// Jobs per round and side, in a tenth as many groups.
    pub jobs: usize,
    /// Jobs for the TTL controller, and as many for the command.
    pub ttl: usize,
}

impl Default for PruneSizes {
    /// About three minutes on two cores.
    fn default() -> Self {
        Self { rounds: 3, jobs: 5_000, ttl: 2_000 }
    }
}

impl PruneSizes {
    /// Small sizes, as a smoke test.
    pub const QUICK: Self = Self { rounds: 1, jobs: 40, ttl: 20 };

    /// Sizes from the environment: `BENCH_PRUNE_JOBS` (per round and side), `BENCH_PRUNE_ROUNDS`.
    ///
    /// # Errors
    /// If a variable is not a number.
    pub fn from_environment(self) -> Result<Self> {
        let jobs = environment::number("BENCH_PRUNE_JOBS", self.jobs)?;
        Ok(Self { jobs, rounds: environment::number("BENCH_PRUNE_ROUNDS", self.rounds)?, ..self })
    }
}

/// The figures of one prune.
#[derive(Clone, Copy, Debug)]
struct PruneRun {
    per_second: f64,
    peak: u64,
    processor: Duration,
}

/// Boots a cluster and measures. `program` is `bench-all`, whose hidden subcommand `naive-prune` is the script.
///
/// # Errors
/// If something does not start, or the wrong number of Jobs remains.
pub async fn measure(program: &Path, sizes: PruneSizes) -> Result<Table> {
    let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let sink = run_cancellable(pair_programs).await?.join("job-handler-sink");
    let mut namespaces = Vec::new();
    for _ in 0..2 * sizes.rounds + 2 {
        namespaces.push(cluster.namespace("bench").await?);
    }
    cluster.component(Component::ControllerManager)?.stop()?;
    let mut ran: [Vec<PruneRun>; 2] = Default::default();
    for round in 0..sizes.rounds {
        for turn in 0..2 {
            let namespace = namespaces[2 * round + turn].name();
            seed(&cluster, &old_jobs(namespace, sizes.jobs, None)).await?;
            let ours = (round + turn) % 2 == 0;
            let mut command = if ours { Command::new(&sink) } else { Command::new(program) };
            command.arg(if ours { "prune" } else { "naive-prune" });
            command.args(["--namespace", namespace, "--group-label", LABEL]);
            let groups = groups_of(sizes.jobs);
            let (figures, elapsed) = run(&cluster, command).await?;
            let remaining = count_remaining(&cluster.client(), namespace).await?;
            if remaining != groups {
                return Err(Error::Invalid(format!(
                    "expected {groups} of {} Jobs to remain, found {remaining}",
                    sizes.jobs
                )));
            }
            let per_second = (sizes.jobs - groups) as f64 / elapsed.as_secs_f64();
            ran[usize::from(!ours)].push(PruneRun { per_second, ..figures });
        }
    }
    let mut table = table(sizes, &ran[0], &ran[1]);
    let pair = [namespaces[2 * sizes.rounds].name(), namespaces[2 * sizes.rounds + 1].name()];
    compare_with_ttl(&cluster, &sink, pair, sizes.ttl, &mut table).await?;
    Ok(table)
}

fn groups_of(jobs: usize) -> usize {
    (jobs / 10).max(1)
}

fn old_jobs(namespace: &str, jobs: usize, ttl: Option<i32>) -> SeedJobs {
    SeedJobs {
        namespace: namespace.to_owned(),
        prefix: "hook".to_owned(),
        jobs,
        groups: Some((LABEL.to_owned(), groups_of(jobs))),
        log_bytes: None,
        ttl,
        finished: true,
    }
}

/// Runs a program to its end and samples its memory meanwhile.
async fn run(cluster: &Cluster, mut command: Command) -> Result<(PruneRun, Duration)> {
    command.env("KUBECONFIG", cluster.kubeconfig()).env("RUST_LOG", "warn");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let begin = Instant::now();
    let child = command.spawn().map_err(Error::io("starting a prune"))?;
    let process = child.id().unwrap_or_default();
    let mut ran = PruneRun { per_second: 0.0, peak: 0, processor: Duration::ZERO };
    let mut output = std::pin::pin!(child.wait_with_output());
    let mut samples = tokio::time::interval(Duration::from_millis(10));
    let output = loop {
        tokio::select! {
            result = &mut output => break result.map_err(Error::io("waiting for a prune"))?,
            _ = samples.tick() => {
                // Fails once the process has exited.
                if let (Ok(memory), Ok(processor)) = (machine::memory(process), machine::processor_time(process)) {
                    (ran.peak, ran.processor) = (ran.peak.max(memory.peak), processor);
                }
            }
        }
    };
    if !output.status.success() {
        return Err(Error::Command {
            command: "a prune".to_owned(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok((ran, begin.elapsed()))
}

/// Lists all Jobs of a namespace and deletes all but the newest of each label value, with the same calls as the command
/// but without pages and checks.
///
/// # Errors
/// If any call fails.
pub async fn naive(namespace: &str, label: &str) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_default().await.map_err(Error::api("creating a client"))?;
    let api: Api<Job> = Api::namespaced(client, namespace);
    let all = api.list(&ListParams::default().labels(label)).await.map_err(Error::api("listing Jobs"))?;
    let mut groups: BTreeMap<String, Vec<&Job>> = BTreeMap::new();
    for job in &all.items {
        groups.entry(job.labels().get(label).cloned().unwrap_or_default()).or_default().push(job);
    }
    let mut old = Vec::new();
    for jobs in groups.values_mut() {
        jobs.sort_by_key(|job| (job.creation_timestamp(), job.uid()));
        if let Some(newest) = jobs.pop() {
            api.get(&newest.name_any()).await.map_err(Error::api("getting a Job"))?;
        }
        old.append(jobs);
    }
    let deletions = futures::stream::iter(old).map(|job| {
        let (api, name) = (api.clone(), job.name_any());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: job.uid(), resource_version: job.resource_version() }),
            ..DeleteParams::foreground()
        };
        async move { api.delete(&name, &params).await.map(drop) }
    });
    let deletions = deletions.buffer_unordered(CONCURRENT_DELETIONS);
    deletions.try_collect::<()>().await.map_err(Error::api("deleting a Job"))
}

/// Deletes as many Jobs by the TTL controller as by the command, one after the other, and times both from the first to
/// the last deletion that a watch delivers.
async fn compare_with_ttl(
    cluster: &Cluster,
    sink: &Path,
    namespaces: [&str; 2],
    jobs: usize,
    table: &mut Table,
) -> Result<()> {
    let [native, ours] = namespaces;
    let manager = cluster.component(Component::ControllerManager)?;
    // The command's Jobs have no TTL, and it keeps one Job of each group.
    seed(cluster, &old_jobs(ours, jobs, None)).await?;
    seed(cluster, &old_jobs(native, jobs, Some(0))).await?;
    let mut command = Command::new(sink);
    command.args(["prune", "--namespace", ours, "--group-label", LABEL]);
    let deleted = jobs - groups_of(jobs);
    let client = cluster.client();
    let (watched, command_result) =
        tokio::join!(deletion_time(&client, ours, deleted), run(cluster, command));
    command_result?;
    let ours = rate(deleted, watched?);
    manager.cont()?;
    let native = rate(jobs, deletion_time(&client, native, jobs).await?);
    let row = |name: &str, rate: f64| {
        vec![name.to_owned(), figure(rate), figure(rate / native), "-".into(), "-".into(), "-".into()]
    };
    table.rows.push(row(&format!("TTL controller, {jobs} Jobs"), native));
    table.rows.push(row(&format!("prune command, {jobs} Jobs"), ours));
    Ok(())
}

fn rate(jobs: usize, elapsed: Duration) -> f64 {
    jobs.saturating_sub(1) as f64 / elapsed.as_secs_f64().max(1e-3)
}

/// The time from the first to the last watch event of this number of deletions.
async fn deletion_time(client: &Client, namespace: &str, jobs: usize) -> Result<Duration> {
    let api: Api<PartialObjectMeta<Job>> = Api::namespaced(client.clone(), namespace);
    let mut events = watcher(api, watcher::Config::default()).boxed();
    let mut deleted = BTreeSet::new();
    let mut begin = None;
    let all = async {
        while deleted.len() < jobs {
            let job = match next_event(&mut events).await? {
                Some(Event::Apply(job) | Event::InitApply(job))
                    if job.metadata.deletion_timestamp.is_some() =>
                {
                    job
                }
                Some(Event::Delete(job)) => job,
                _ => continue,
            };
            begin.get_or_insert_with(Instant::now);
            deleted.insert(job.name_any());
        }
        Ok::<(), Error>(())
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    match (waited, begin) {
        (Ok(Err(error)), _) => Err(error),
        (Ok(Ok(())), Some(begin)) => Ok(begin.elapsed()),
        _ => Err(Error::Timeout {
            what: format!("the Jobs of {namespace} to be deleted"),
            waited: PATIENCE,
            last: format!("{} of {jobs}", deleted.len()),
        }),
    }
}

async fn count_remaining(client: &Client, namespace: &str) -> Result<usize> {
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let listed = api.list_metadata(&ListParams::default()).await.map_err(Error::api("listing Jobs"))?;
    Ok(listed.items.iter().filter(|job| job.metadata.deletion_timestamp.is_none()).count())
}

fn table(sizes: PruneSizes, ours: &[PruneRun], naive: &[PruneRun]) -> Table {
    let columns = ["pruned by", "deletes/s", "vs. baseline", "peak MiB", "vs. baseline", "CPU s"];
    let title = sized("Prune of finished Jobs", sizes.jobs, PruneSizes::default().jobs);
    let mut table = Table::new(&title, &columns);
    let speed = |ran: &[PruneRun]| ran.iter().map(|ran| ran.per_second).collect::<Vec<_>>();
    let peak = |ran: &[PruneRun]| ran.iter().map(|ran| to_mib(ran.peak)).collect::<Vec<_>>();
    let (faster, smaller) =
        (median_ratio(&speed(ours), &speed(naive)), median_ratio(&peak(naive), &peak(ours)));
    for (name, ran, other) in [("list-and-delete script", naive, naive), ("prune command", ours, naive)] {
        table.rows.push(vec![
            format!("{name}, {} Jobs", sizes.jobs),
            figure(median(speed(ran))),
            figure(median_ratio(&speed(ran), &speed(other))),
            figure(median(peak(ran))),
            figure(median_ratio(&peak(ran), &peak(other))),
            figure(median(ran.iter().map(|ran| ran.processor.as_secs_f64()))),
        ]);
    }
    table.aims = vec![
        Aim {
            what: "at least 0.9 of the script's deletes/s".to_owned(),
            found: figure(faster),
            met: faster >= 0.9,
        },
        Aim {
            what: "a peak of memory at least 5 times lower (at 50000 Jobs)".to_owned(),
            found: format!("{} times lower with {} Jobs", figure(smaller), sizes.jobs),
            met: smaller >= 5.0,
        },
    ];
    table.notes = vec![
        format!(
            "The baselines are the script and the TTL controller. {} rounds; in each, command and script prune {} finished Jobs in {} groups, one after the other in separate namespaces, \
             {CONCURRENT_DELETIONS} deletions at a time, with the same calls: one GET per group, one DELETE with preconditions per \
             Job. The garbage collector is paused. Time is that of the program from start to exit.",
            sizes.rounds, sizes.jobs, groups_of(sizes.jobs)
        ),
        "Bottleneck: the work of apiserver and etcd per deletion. Memory: the command holds the needed fields of the Jobs of up to \
         30 pages (500 each), and the kept Job of each group; the script holds all Jobs. Memory is sampled every 10 ms."
            .to_owned(),
        "The TTL controller runs in the controller manager, whose client is limited to 500 calls per second (bursts of \
         1000), with one GET and one DELETE per Job and 5 workers, beside the other controllers, which delete the \
         dependents. The command's client has no such limit, and is measured while that process is paused. Times are from \
         the first to the last deletion that the benchmark's watch delivers."
            .to_owned(),
    ];
    table
}
