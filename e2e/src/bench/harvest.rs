//! Harvests of finished Jobs: the sink beside a loop that makes the same calls without thinking; lag, memory, processor
//! time, and what the sink costs where many Jobs lie around.

pub mod fault_isolation;
pub mod receiver_down;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::load::Latencies;
use super::machine;
use super::report::{Aim, Table, figure, median, median_ratio, sized};
use super::seed::{Seed, ask_for_results, finish, seed, send};
use crate::bench::cleanup_latency;
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::{Error, Result};
use crate::harness::wait::wait_for;
use crate::pair::{Pair, PairOptions};

/// Jobs that the sink works on at a time (`job_handler_sink::reconcile::job`), and so does the loop.
const CONCURRENCY: usize = 24;
/// Nothing of a bench takes longer than this.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of each Job's log.
const LOG: u64 = 2 << 10;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rounds; each harvests as many Jobs by the sink as by the loop.
    pub rounds: usize,
    /// Jobs of each in each round.
    pub jobs: usize,
    /// Jobs that finish one after the other, for the lag.
    pub steady: usize,
    /// So many of them per second.
    pub per_second: u32,
    /// Bytes of the one large log.
    pub large: u64,
    /// How long to look at the sink doing nothing.
    pub idle: Duration,
}

impl Default for Sizes {
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

impl Sizes {
    /// To see that everything works.
    pub const QUICK: Self = Self {
        rounds: 1,
        jobs: 20,
        steady: 10,
        per_second: 20,
        large: 2 << 20,
        idle: Duration::from_millis(200),
    };

    /// With the numbers that somebody wants instead: `BENCH_HARVEST_JOBS` (per round and side), `BENCH_HARVEST_ROUNDS`
    /// and `BENCH_IDLE_SECONDS`.
    ///
    /// # Errors
    /// Where one is no number.
    pub fn from_environment(self) -> Result<Self> {
        let idle = match super::wished("BENCH_IDLE_SECONDS", 0)? {
            0 => self.idle,
            seconds => Duration::from_secs(seconds as u64),
        };
        let jobs = super::wished("BENCH_HARVEST_JOBS", self.jobs)?;
        Ok(Self { idle, jobs, rounds: super::wished("BENCH_HARVEST_ROUNDS", self.rounds)?, ..self })
    }

    /// Jobs that are present in the end.
    fn present(self) -> usize {
        2 * self.rounds * self.jobs
    }

    fn title(self, title: &str) -> String {
        sized(title, self.present(), Self::default().present())
    }
}

/// Measures on a cluster of its own.
///
/// # Errors
/// If anything does not run, or a result is missing.
pub async fn measure(sizes: Sizes) -> Result<Vec<Table>> {
    let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let pair =
        Pair::install(&cluster, PairOptions { log: "warn".to_owned(), ..PairOptions::default() }).await?;
    let sink = pair.sink().process().id();
    let mut namespaces = Vec::new();
    for _ in 0..2 * sizes.rounds + 2 {
        namespaces.push(cluster.namespace("bench").await?);
    }
    // Statuses are written by us: neither the Job controller nor the nodes have a say.
    cluster.component(Component::ControllerManager)?.stop()?;
    cluster.component(Component::Kwok)?.stop()?;
    let empty = machine::memory(sink)?;

    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut processor = Duration::ZERO;
    for round in 0..sizes.rounds {
        // Each goes first in turn.
        for turn in 0..2 {
            let namespace = namespaces[2 * round + turn].name();
            let seeded = Seed {
                namespace: namespace.to_owned(),
                prefix: "done".to_owned(),
                jobs: sizes.jobs,
                groups: None,
                log_bytes: Some(LOG),
                ttl: None,
                finished: true,
            };
            seed(&cluster, &seeded).await?;
            if (round + turn) % 2 == 0 {
                let before = machine::processor_time(sink)?;
                ours.push(sizes.jobs as f64 / by_sink(&cluster, namespace, sizes.jobs).await?.as_secs_f64());
                processor += machine::processor_time(sink)? - before;
            } else {
                bare.push(sizes.jobs as f64 / by_loop(&cluster, namespace, sizes.jobs).await?.as_secs_f64());
            }
        }
    }
    let full = machine::memory(sink)?;
    let namespace = namespaces[2 * sizes.rounds].name();
    let mut table = harvests(sizes, &ours, &bare, processor);
    let title = sizes.title("The sink's lag, memory and rest");
    let mut state = Table::new(&title, &["what", "figure", "unit"]);
    lag(&cluster, namespace, sizes, &mut state).await?;
    let last = namespaces[2 * sizes.rounds + 1].name();
    let gone = cleanup_latency::measure(&cluster, last, sizes.steady, sizes.per_second).await?;
    memory(&mut state, sizes, empty, full);
    large(&cluster, namespace, sink, sizes, &mut state).await?;
    rest(&cluster, &pair, namespace, sizes, &mut state).await?;
    state.notes = notes();
    table.notes.push(
        "What limits: the apiserver and etcd, which share the cores with sink and loop; ten of the sink's eleven calls per \
         Job are theirs. The sink's own part is its processor time per Job."
            .to_owned(),
    );
    Ok(vec![table, state, gone])
}

/// From the policy that asks for them until all results are stored, told and marked.
async fn by_sink(cluster: &Cluster, namespace: &str, jobs: usize) -> Result<Duration> {
    let client = cluster.client();
    let begin = Instant::now();
    ask_for_results(&client, namespace).await?;
    harvested(&client, namespace, jobs).await?;
    Ok(begin.elapsed())
}

/// Waits for so many results of which nothing is to be told any more.
async fn harvested(client: &Client, namespace: &str, jobs: usize) -> Result<()> {
    let api: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().labels("job-handler/created=true");
    let mut events = watcher(api, config).boxed();
    let mut done = std::collections::BTreeSet::new();
    let all = async {
        while done.len() < jobs {
            let Some(event) = next(&mut events).await? else { continue };
            if let Event::Apply(map) | Event::InitApply(map) = event
                && !map.labels().contains_key("job-handler/announce")
            {
                done.insert(map.name_any());
            }
        }
        Ok(())
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    waited.unwrap_or_else(|_| {
        let last = format!("{} of {jobs}", done.len());
        Err(Error::Timeout { what: format!("the results of {namespace}"), waited: PATIENCE, last })
    })
}

async fn next<K>(
    events: &mut futures::stream::BoxStream<'_, Result<Event<K>, watcher::Error>>,
) -> Result<Option<Event<K>>> {
    match events.try_next().await {
        Ok(Some(event)) => Ok(Some(event)),
        Ok(None) => Err(Error::Invalid("a watch ended".to_owned())),
        // The watcher goes on by itself.
        Err(_) => Ok(None),
    }
}

/// The sink's calls for each Job, in its order and as many at a time, and nothing else.
async fn by_loop(cluster: &Cluster, namespace: &str, jobs: usize) -> Result<Duration> {
    // One client for all: so does the sink.
    let client = cluster.client();
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..jobs {
        if tasks.len() >= CONCURRENCY {
            joined(tasks.join_next().await)?;
        }
        let (client, namespace) = (client.clone(), namespace.to_owned());
        tasks.spawn(async move { one_by_loop(&client, &namespace, &format!("done-{n:06}")).await });
    }
    while !tasks.is_empty() {
        joined(tasks.join_next().await)?;
    }
    Ok(begin.elapsed())
}

fn joined(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Error::Invalid(format!("the loop panicked: {error}"))),
        None => Ok(()),
    }
}

async fn one_by_loop(client: &Client, namespace: &str, job: &str) -> Result<()> {
    let (maps, result) = (format!("/api/v1/namespaces/{namespace}/configmaps"), format!("{job}-results"));
    let (pods, place) = (format!("/api/v1/namespaces/{namespace}/pods"), format!("{maps}/{result}"));
    let of_job = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{job}");
    let get = async |uri: &str| send(client, "GET", uri, &Value::Null).await;
    absent(get(&place).await)?;
    let selector = format!("{pods}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{job}&limit=200");
    let found = get(&selector).await?;
    let pod = found["items"][0]["metadata"]["name"].as_str().unwrap_or_default();
    let request = http::Request::get(format!("{pods}/{pod}/log?container=main"))
        .body(Vec::new())
        .map_err(|error| Error::Invalid(format!("asking for a log: {error}")))?;
    let log = client.request_text(request).await.map_err(Error::api("reading a log"))?;
    absent(get(&place).await)?;
    let map = json!({
        "metadata": {"name": result, "labels": {"job-name": job, "bench": "loop"}},
        "data": {"job-name": job, "status": "completed", "logs": log, "result.json": found["items"][0].to_string()},
    });
    send(client, "POST", &maps, &map).await?;
    let there = get(&of_job).await?;
    get(&place).await?;
    let mark = json!({"metadata": {
        "resourceVersion": there["metadata"]["resourceVersion"],
        "annotations": {"job-handler/status": "completed", "job-handler/results": result},
    }});
    send(client, "PATCH", &of_job, &mark).await?;
    get(&place).await?;
    let event = json!({
        "metadata": {"name": format!("{job}.bench")}, "eventTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string(),
        "reportingController": "bench", "reportingInstance": "bench", "action": "Completed", "reason": "JobProcessing",
        "type": "Normal", "note": "Completed",
        "regarding": {"apiVersion": "batch/v1", "kind": "Job", "name": job, "namespace": namespace, "uid": there["metadata"]["uid"]},
    });
    send(client, "POST", &format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), &event).await?;
    send(client, "PATCH", &place, &json!({"metadata": {"labels": {"told": "yes"}}})).await.map(drop)
}

fn absent(answer: Result<Value>) -> Result<()> {
    match answer {
        Ok(_) => Err(Error::Invalid("a result is there before its harvest".to_owned())),
        Err(Error::Api { cause, .. }) if matches!(&*cause, kube::Error::Api(status) if status.code == 404) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn harvests(sizes: Sizes, ours: &[f64], bare: &[f64], processor: Duration) -> Table {
    let columns = ["who", "Jobs/s", "of the loop's", "CPU ms/Job"];
    let mut table = Table::new(&sizes.title("Harvest of finished Jobs"), &columns);
    let ratio = median_ratio(ours, bare);
    let per_job = processor.as_secs_f64() * 1e3 / (sizes.jobs * sizes.rounds) as f64;
    table.rows = vec![
        vec!["loop".into(), figure(median(bare.iter().copied())), "1.00".into(), "-".into()],
        vec!["sink".into(), figure(median(ours.iter().copied())), figure(ratio), figure(per_job)],
    ];
    table.aims.push(Aim {
        what: "at least 0.80 of the loop's Jobs/s".to_owned(),
        found: figure(ratio),
        met: ratio >= 0.8,
    });
    table.notes.push(format!(
        "{} rounds of {} Jobs each, by the sink and by the loop in turns, each Job with one pod and a log of {LOG} bytes; \
         statuses are written by the bench while controllers and nodes stand still. The sink's time begins with the policy \
         that asks for the results. The loop makes the sink's calls in its order, {CONCURRENCY} Jobs at a time, and decides \
         nothing.",
        sizes.rounds, sizes.jobs
    ));
    table
}

/// How long after a Job is seen to have finished its result is seen to be stored: both by the bench's own watches.
async fn lag(cluster: &Cluster, namespace: &str, sizes: Sizes, table: &mut Table) -> Result<()> {
    let client = cluster.client();
    ask_for_results(&client, namespace).await?;
    let seeded = Seed {
        namespace: namespace.to_owned(),
        prefix: "steady".to_owned(),
        jobs: sizes.steady,
        groups: None,
        log_bytes: Some(LOG),
        ttl: None,
        finished: false,
    };
    seed(cluster, &seeded).await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let mut jobs = watcher(jobs, watcher::Config::default()).boxed();
    let results = watcher::Config::default().labels("job-handler/created=true");
    let mut maps = watcher(maps, results).boxed();
    let mut finishing: JoinSet<Result<()>> = JoinSet::new();
    finishing.spawn(finish_steadily(client.clone(), seeded.clone(), sizes.per_second));
    let (mut finished, mut lags): (HashMap<String, Instant>, BTreeMap<String, Duration>) = Default::default();
    let mut stored: HashMap<String, Instant> = HashMap::new();
    let all = async {
        while lags.len() < sizes.steady {
            tokio::select! {
                event = next(&mut jobs) => if let Some(Event::Apply(job) | Event::InitApply(job)) = event?
                    && crate::cluster::jobs::finished(&job).is_some()
                {
                    finished.entry(job.name_any()).or_insert_with(Instant::now);
                },
                event = next(&mut maps) => if let Some(Event::Apply(map) | Event::InitApply(map)) = event? {
                    let name = name_of_job(&map);
                    stored.entry(name).or_insert_with(Instant::now);
                },
                Some(done) = finishing.join_next() => joined(Some(done))?,
            }
            let both = finished.iter().filter(|(name, _)| !lags.contains_key(*name));
            let both = both.filter_map(|(name, at)| {
                Some((name.clone(), stored.get(name)?.saturating_duration_since(*at)))
            });
            let both: Vec<_> = both.collect();
            lags.extend(both);
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| Error::Timeout {
        what: "the results of Jobs that finish steadily".to_owned(),
        waited: PATIENCE,
        last: "some are missing".to_owned(),
    })??;
    let mut latencies = Latencies::new();
    lags.values().for_each(|lag| latencies.add(*lag));
    let (p50, p99) = (latencies.quantile(0.5) / 1e3, latencies.quantile(0.99) / 1e3);
    let what = format!("lag at {} Jobs/s", sizes.per_second);
    table.rows.push(vec![format!("{what}, p50"), figure(p50), "ms".into()]);
    table.rows.push(vec![format!("{what}, p99"), figure(p99), "ms".into()]);
    table.aims.push(Aim {
        what: "a lag of less than 100 ms at p50 and 1 s at p99".to_owned(),
        found: format!("{} and {} ms", figure(p50), figure(p99)),
        met: p50 < 100.0 && p99 < 1000.0,
    });
    Ok(())
}

fn name_of_job(map: &PartialObjectMeta<ConfigMap>) -> String {
    let ObjectMeta { labels, .. } = &map.metadata;
    labels.as_ref().and_then(|labels| labels.get("job-name")).cloned().unwrap_or_default()
}

async fn finish_steadily(client: Client, seeded: Seed, per_second: u32) -> Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    let mut writes = JoinSet::new();
    for n in 0..seeded.jobs {
        ticks.tick().await;
        let (client, namespace, name) = (client.clone(), seeded.namespace.clone(), seeded.name(n));
        writes.spawn(async move { finish(&client, &namespace, &name).await });
    }
    while !writes.is_empty() {
        joined(writes.join_next().await)?;
    }
    Ok(())
}

fn memory(table: &mut Table, sizes: Sizes, empty: machine::Memory, full: machine::Memory) {
    let present = sizes.present();
    let slope = full.now.saturating_sub(empty.now) as f64 / 1024.0 / present as f64;
    table.rows.push(vec!["memory with no Job".into(), mib(empty.now), "MiB".into()]);
    table.rows.push(vec![format!("memory after {present} Jobs"), mib(full.now), "MiB".into()]);
    table.rows.push(vec![format!("peak memory at {present} Jobs"), mib(full.peak), "MiB".into()]);
    table.rows.push(vec!["memory per Job".into(), figure(slope), "KiB".into()]);
    // Aimed for at these numbers of Jobs; a line between and beyond them.
    let limit = if present <= 10_000 { 80.0 } else { 80.0 + 170.0 * (present as f64 - 10_000.0) / 40_000.0 };
    let peak = full.peak as f64 / f64::from(1 << 20);
    table.aims.push(Aim {
        what: format!(
            "less than {} MiB at the peak with {present} Jobs (80 at 10000, 250 at 50000)",
            figure(limit)
        ),
        found: figure(peak),
        met: peak < limit,
    });
}

/// One Job with a log that no memory should hold.
async fn large(cluster: &Cluster, namespace: &str, sink: u32, sizes: Sizes, table: &mut Table) -> Result<()> {
    let seeded = Seed {
        namespace: namespace.to_owned(),
        prefix: "large".to_owned(),
        jobs: 1,
        groups: None,
        log_bytes: Some(sizes.large),
        ttl: None,
        finished: false,
    };
    seed(cluster, &seeded).await?;
    machine::reset_peak(sink)?;
    let before = machine::memory(sink)?;
    let begin = Instant::now();
    finish(&cluster.client(), namespace, &seeded.name(0)).await?;
    let manifest = result(cluster, namespace, &seeded.name(0)).await?;
    let (elapsed, after) = (begin.elapsed(), machine::memory(sink)?);
    let length = &manifest["pods"][0]["containers"][0]["logs"][0]["length"];
    if *length != sizes.large {
        return Err(Error::Invalid(format!("of {} bytes of log the sink has seen {length}", sizes.large)));
    }
    let what = format!("one log of {} MiB", sizes.large >> 20);
    table.rows.push(vec![format!("{what}, stored after"), figure(elapsed.as_secs_f64()), "s".into()]);
    let more = after.peak.saturating_sub(before.now);
    table.rows.push(vec![format!("{what}, memory on top"), mib(more), "MiB".into()]);
    Ok(())
}

/// What the sink costs where nothing happens, as it starts, and as the apiserver comes back.
async fn rest(
    cluster: &Cluster,
    pair: &Pair,
    namespace: &str,
    sizes: Sizes,
    table: &mut Table,
) -> Result<()> {
    let seeded = Seed {
        namespace: namespace.to_owned(),
        prefix: "last".to_owned(),
        jobs: 2,
        groups: None,
        log_bytes: Some(LOG),
        ttl: None,
        finished: false,
    };
    seed(cluster, &seeded).await?;
    let sink = || pair.sink().process().id();
    let both = [("sink", sink()), ("webhook", pair.webhook(0).process().id())];
    let used =
        || -> Result<Vec<Duration>> { both.iter().map(|(_, id)| machine::processor_time(*id)).collect() };
    let before = used()?;
    // A measurement, not a wait for something.
    tokio::time::sleep(sizes.idle).await;
    for (((name, id), before), after) in both.iter().zip(before).zip(used()?) {
        let share = (after - before).as_secs_f64() / sizes.idle.as_secs_f64() * 100.0;
        let what = format!("{name}: processor while idle for {:?}", sizes.idle);
        table.rows.push(vec![what, figure(share), "% of a core".into()]);
        let memory = machine::memory(*id)?.now;
        table.rows.push(vec![format!("{name}: memory after that"), mib(memory), "MiB".into()]);
    }

    for (_, id) in both {
        machine::reset_peak(id)?;
    }
    let (begin, before) = (Instant::now(), used()?);
    cluster.component(Component::Apiserver)?.restart().await?;
    finish(&cluster.client(), namespace, &seeded.name(0)).await?;
    result(cluster, namespace, &seeded.name(0)).await?;
    let what = "apiserver restarted";
    table.rows.push(vec![
        format!("{what}: next result after"),
        figure(begin.elapsed().as_secs_f64()),
        "s".into(),
    ]);
    for (((name, id), before), after) in both.iter().zip(before).zip(used()?) {
        let used = (after - before).as_secs_f64() * 1e3;
        table.rows.push(vec![format!("{what}: processor of the {name}"), figure(used), "ms".into()]);
        let peak = machine::memory(*id)?.peak;
        table.rows.push(vec![format!("{what}: peak memory of the {name}"), mib(peak), "MiB".into()]);
    }

    let begin = Instant::now();
    pair.sink().restart()?;
    pair.sink().wait_ready(PATIENCE).await?;
    table.rows.push(vec![
        "sink restarted: ready after".into(),
        figure(begin.elapsed().as_secs_f64()),
        "s".into(),
    ]);
    finish(&cluster.client(), namespace, &seeded.name(1)).await?;
    result(cluster, namespace, &seeded.name(1)).await?;
    let elapsed = begin.elapsed().as_secs_f64();
    table.rows.push(vec!["sink restarted: next result after".into(), figure(elapsed), "s".into()]);
    let used = machine::processor_time(sink())?;
    table.rows.push(vec!["sink restarted: processor".into(), figure(used.as_secs_f64() * 1e3), "ms".into()]);
    table.rows.push(vec![
        "sink restarted: peak memory".into(),
        mib(machine::memory(sink())?.peak),
        "MiB".into(),
    ]);
    Ok(())
}

async fn result(cluster: &Cluster, namespace: &str, job: &str) -> Result<Value> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), namespace);
    let name = format!("{job}-results");
    wait_for(PATIENCE, &format!("the result {name}"), || async {
        let map = maps.get(&name).await.map_err(|error| error.to_string())?;
        let text = map.data.unwrap_or_default().remove("result.json").unwrap_or_default();
        serde_json::from_str(&text).map_err(|error| error.to_string())
    })
    .await
}

fn notes() -> Vec<String> {
    vec![
        "Lag: from the bench's own watch event «finished» to its own watch event «result there». What limits it: the calls \
         of one harvest, one after the other, as many as 20 of them a second beside what else runs on the cores."
            .to_owned(),
        "Memory is VmRSS and VmHWM of the sink's process, all Jobs of all rounds present (those of the loop, too: the sink \
         watches every Job). Per Job it remembers what limits, plans and order need, not the template; a Job's results are \
         remembered by name."
            .to_owned(),
        "After a kill the next leader waits for the Lease to run out (15 s): that is most of «next result after» a restart \
         of the sink. After a restart of the apiserver it is the apiserver's own start."
            .to_owned(),
    ]
}

fn mib(bytes: u64) -> String {
    figure(bytes as f64 / f64::from(1 << 20))
}
