//! Job creates: without a limit, with a quota, with webhooks that do nothing, with both, and with our limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::task::JoinSet;

use crate::bench::limits::limits_cluster::{LimitsCluster, namespace};
use crate::bench::limits::measure::LimitsEffort;
use crate::bench::limits::time_breakdown::{self, TimeBreakdown};
use crate::bench::load::Latencies;
use crate::bench::reviews;
use crate::bench::samples::LoadSamples;
use crate::bench::table::{Aim, Table, figure};
use crate::harness::error::{Error, Result};

/// How the number of Jobs is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMethod {
    /// No limit.
    None,
    /// `ResourceQuota` on `count/jobs.batch`.
    Quota,
    /// Two webhooks that allow everything: one mutating, one validating.
    Nulls,
    /// Both: a limit without the guarantees of ours, with as many webhook calls.
    NullsAndQuota,
    /// Our limit, one replica.
    One,
    /// Our limit, three replicas.
    Three,
}

impl LimitMethod {
    /// In the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Quota, Self::Nulls, Self::NullsAndQuota, Self::One, Self::Three];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no limit",
            Self::Quota => "quota",
            Self::Nulls => "two null webhooks",
            Self::NullsAndQuota => "two null webhooks and quota",
            Self::One => "our limit, 1 replica",
            Self::Three => "our limit, 3 replicas",
        }
    }

    fn namespaces(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Quota => "quota",
            Self::Nulls => "null",
            Self::NullsAndQuota => "null-quota",
            Self::One | Self::Three => "ours",
        }
    }

    fn replicas(self) -> Option<usize> {
        match self {
            Self::One => Some(1),
            Self::Three => Some(3),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct CreateSamples {
    load: LoadSamples,
    writes: f64,
    conflicts: f64,
    reads: f64,
    creates: u64,
    times: TimeBreakdown,
}

type MethodSamples = [CreateSamples; LimitMethod::ALL.len()];

pub(super) async fn measure(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<[Table; 2]> {
    let names = Arc::new(AtomicU64::new(0));
    let mut measured: Vec<(usize, usize, MethodSamples)> = Vec::new();
    for &namespaces in &effort.namespaces {
        for &clients in &effort.clients {
            let mut cells = MethodSamples::default();
            for round in 0..effort.rounds {
                for turn in 0..LimitMethod::ALL.len() {
                    // Each round begins with another method, so that the order does not favour one.
                    let n = (round + turn) % LimitMethod::ALL.len();
                    let load = Load { clients, namespaces, time: effort.time };
                    create_for(bench, LimitMethod::ALL[n], load, &names, &mut cells[n]).await?;
                }
            }
            measured.push((namespaces, clients, cells));
        }
    }
    let (mut table, mut times) = (table(effort), time_breakdown::table());
    for (namespaces, clients, cells) in &measured {
        for (n, method) in LimitMethod::ALL.into_iter().enumerate() {
            table.rows.push(row(*namespaces, *clients, method, &cells[n], cells));
            let name = format!("{clients} into {namespaces}, {}", method.name());
            times.rows.push(
                std::iter::once(name)
                    .chain(cells[n].times.cells(cells[n].creates, method.replicas().is_some()))
                    .collect(),
            );
        }
    }
    table.aims.extend(aims(&measured));
    Ok([table, times])
}

#[derive(Clone, Copy)]
struct Load {
    clients: usize,
    namespaces: usize,
    time: Duration,
}

async fn create_for(
    bench: &LimitsCluster,
    method: LimitMethod,
    load: Load,
    names: &Arc<AtomicU64>,
    samples: &mut CreateSamples,
) -> Result<()> {
    const WRITES: &str = "job_handler_limit_ledger_writes_total";
    const CONFLICTS: &str = "job_handler_limit_ledger_conflicts_total";
    const READS: &str = "job_handler_limit_consistent_reads_total";
    if let Some(replicas) = method.replicas() {
        bench.use_replicas(replicas).await?;
    }
    let times = TimeBreakdown::read(bench).await?;
    let before = [bench.counter(WRITES).await?, bench.counter(CONFLICTS).await?, bench.counter(READS).await?];
    let begin = Instant::now();
    // The warm-up opens connections and fills caches, and is not counted.
    let counted = begin + load.time / 4;
    let until = counted + load.time;
    let mut tasks = JoinSet::new();
    for client in 0..load.clients {
        let connection = bench.cluster.client();
        let load = CreateTask { method, namespaces: load.namespaces, counted, until, first: client };
        tasks.spawn(create(connection, load, names.clone()));
    }
    let (mut latencies, mut all) = (Latencies::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (task_latencies, creates) =
            done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&task_latencies);
        all += creates;
    }
    let elapsed = counted.elapsed();
    samples.times.add(times, TimeBreakdown::read(bench).await?);
    for n in 0..load.namespaces {
        bench.clear(&namespace(method.namespaces(), n)).await?;
    }
    samples.load.add(&latencies, elapsed);
    samples.writes += bench.counter(WRITES).await? - before[0];
    samples.conflicts += bench.counter(CONFLICTS).await? - before[1];
    samples.reads += bench.counter(READS).await? - before[2];
    samples.creates += all;
    Ok(())
}

struct CreateTask {
    method: LimitMethod,
    namespaces: usize,
    counted: Instant,
    until: Instant,
    first: usize,
}

async fn create(client: Client, task: CreateTask, names: Arc<AtomicU64>) -> Result<(Latencies, u64)> {
    const NAME: &str = "bench-name";
    let what = format!("creating a Job with {}", task.method.name());
    let targets: Vec<(String, String)> = (0..task.namespaces)
        .map(|n| {
            let namespace = namespace(task.method.namespaces(), n);
            let uri = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
            (uri, reviews::job(&namespace, NAME).to_string())
        })
        .collect();
    let (mut latencies, mut creates, mut now) = (Latencies::new(), 0, Instant::now());
    for (uri, template) in targets.iter().cycle().skip(task.first) {
        if now >= task.until && latencies.count() > 0 {
            break;
        }
        let body = template.replace(NAME, &format!("job-{}", names.fetch_add(1, Ordering::Relaxed)));
        let request = http::Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
        let before = Instant::now();
        // Any status but 2xx is an error.
        client.request_text(request).await.map_err(Error::api(what.clone()))?;
        now = Instant::now();
        creates += 1;
        if before >= task.counted {
            latencies.add(now - before);
        }
    }
    Ok((latencies, creates))
}

impl CreateSamples {
    fn per_create(&self, count: f64) -> f64 {
        count / self.creates as f64
    }
}

fn p50_ratio(cells: &MethodSamples, of: LimitMethod, to: LimitMethod) -> f64 {
    cells[of as usize].load.p50_ratio(&cells[to as usize].load)
}

fn throughput_ratio(cells: &MethodSamples, of: LimitMethod, to: LimitMethod) -> f64 {
    cells[of as usize].load.per_second_ratio(&cells[to as usize].load)
}

fn row(
    namespaces: usize,
    clients: usize,
    method: LimitMethod,
    cell: &CreateSamples,
    cells: &MethodSamples,
) -> Vec<String> {
    let [per_second, p50, p99] = cell.load.cells();
    let ours = |value: f64| if method.replicas().is_some() { figure(value) } else { "-".to_owned() };
    vec![
        format!("{clients} into {namespaces}, {}", method.name()),
        per_second,
        p50,
        p99,
        figure(p50_ratio(cells, method, LimitMethod::None)),
        figure(p50_ratio(cells, method, LimitMethod::NullsAndQuota)),
        figure(throughput_ratio(cells, method, LimitMethod::NullsAndQuota)),
        ours(cell.per_create(cell.writes)),
        ours(cell.per_create(cell.conflicts)),
        ours(cell.per_create(cell.reads)),
    ]
}

fn aims(measured: &[(usize, usize, MethodSamples)]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for method in [LimitMethod::One, LimitMethod::Three] {
        let ratios: Vec<(String, f64, f64)> = measured
            .iter()
            .map(|(namespaces, clients, cells)| {
                let slower = 1.0 / throughput_ratio(cells, method, LimitMethod::NullsAndQuota);
                (
                    format!("{clients} into {namespaces}"),
                    p50_ratio(cells, method, LimitMethod::NullsAndQuota),
                    slower,
                )
            })
            .collect();
        let found: Vec<String> =
            ratios.iter().map(|(at, p50, slower)| format!("{at}: {p50:.2} and {slower:.2}")).collect();
        aims.push(Aim {
            what: format!(
                "{}: at most 1.2 times the p50, and at least 1/1.2 of the throughput, of two null webhooks and quota",
                method.name()
            ),
            found: format!("factor of p50, factor of the inverse throughput: {}", found.join("; ")),
            met: ratios.iter().all(|(_, p50, slower)| *p50 <= 1.2 && *slower <= 1.2),
        });
    }
    let max_clients = measured.iter().map(|(_, clients, _)| *clients).max().unwrap_or_default();
    for (method, aim) in [(LimitMethod::One, 0.3), (LimitMethod::Three, 0.6)] {
        let at: Vec<(usize, f64)> = measured
            .iter()
            .filter(|(_, clients, _)| *clients == max_clients)
            .map(|(namespaces, _, cells)| (*namespaces, &cells[method as usize]))
            .map(|(namespaces, cell)| (namespaces, cell.per_create(cell.writes)))
            .collect();
        let found: Vec<String> = at.iter().map(|(n, writes)| format!("{writes:.2} into {n}")).collect();
        aims.push(Aim {
            what: format!(
                "{}: ledger writes per admitted Job at c = {max_clients} below {aim}, into one namespace",
                method.name()
            ),
            found: found.join(", "),
            met: at.iter().filter(|(namespaces, _)| *namespaces == 1).all(|(_, writes)| *writes < aim),
        });
    }
    aims
}

fn table(effort: &LimitsEffort) -> Table {
    let columns = [
        "clients into namespaces, limit method",
        "creates/s",
        "p50 ms",
        "p99 ms",
        "p50 vs. no limit",
        "p50 vs. null webhooks and quota",
        "creates/s vs. null webhooks and quota",
        "ledger writes/Job",
        "conflicts/Job",
        "consistent reads/Job",
    ];
    let mut table = Table::new("Limits: Job creates through the apiserver", &columns);
    let LimitsEffort { rounds, time, .. } = effort;
    table.notes = vec![
        format!(
            "A cluster of its own (etcd, apiserver, scheduler, no audit log; the controller manager is paused, so that \
             no pods are created), everything on the same cores. Closed loop, one connection per client; {rounds} \
             rounds of {time:?} per method after a warm-up of a quarter of that; each round runs all methods and deletes the \
             Jobs after each. Figures are medians over the rounds; ratios are medians of the ratios within each round."
        ),
        "Each method has its own namespaces. Limits and quotas are never reached. The null webhooks run in the webhook's HTTP \
         server, allow everything, and are behind a load balancer like ours. Ours is the installed pair, three webhook \
         replicas and a sink; the load balancer routes to one replica or to all."
            .to_owned(),
        "The policy has limits only, so that no Job is changed: applying a patch costs the apiserver more than most limits, \
         see the creates through one webhook above."
            .to_owned(),
        "Bottleneck: the two cores. A write of the ledger costs the apiserver about as much as a write of a quota's status, \
         and both batch concurrent admissions; the ledger is JSON, and each replica watches it. With many clients a create \
         waits for the current write and for its own. The apiserver keeps 25 idle connections to a webhook (client-go): \
         with more concurrent calls, each further call begins with a TLS handshake."
            .to_owned(),
        "Ledger writes are all attempted writes, conflicts and removals included, from the first create until the Jobs are \
         deleted."
            .to_owned(),
    ];
    table
}
