//! Job creates: without anything, with a quota, with webhooks that do nothing, with both, with our limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::task::JoinSet;

use super::Effort;
use super::ground::{Ground, namespace};
use super::times::{self, Times};
use crate::bench::load::Latencies;
use crate::bench::report::{Aim, Table, figure, median, median_ratio};
use crate::bench::reviews;
use crate::harness::error::{Error, Result};

/// What a create passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing.
    None,
    /// `ResourceQuota` on `count/jobs.batch`.
    Quota,
    /// Two webhooks that allow everything: one mutating, one validating.
    Nulls,
    /// Both of these: the price of a limit that is not exact, with as many calls as ours.
    NullsAndQuota,
    /// Ours, one replica.
    One,
    /// Ours, three replicas.
    Three,
}

impl Way {
    /// In the order of the tables.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Quota, Self::Nulls, Self::NullsAndQuota, Self::One, Self::Three];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Quota => "quota",
            Self::Nulls => "two null webhooks",
            Self::NullsAndQuota => "two null webhooks, quota",
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
struct Cell {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    writes: f64,
    conflicts: f64,
    reads: f64,
    creates: u64,
    times: Times,
}

type Cells = [Cell; Way::ALL.len()];

pub(super) async fn measure(ground: &Ground, effort: &Effort) -> Result<[Table; 2]> {
    let names = Arc::new(AtomicU64::new(0));
    let mut measured: Vec<(usize, usize, Cells)> = Vec::new();
    for &namespaces in &effort.namespaces {
        for &clients in &effort.clients {
            let mut cells = Cells::default();
            for round in 0..effort.rounds {
                for turn in 0..Way::ALL.len() {
                    // Each round begins with another, so that none always follows the same neighbour.
                    let n = (round + turn) % Way::ALL.len();
                    let load = Load { clients, namespaces, time: effort.time };
                    turn_of(ground, Way::ALL[n], load, &names, &mut cells[n]).await?;
                }
            }
            measured.push((namespaces, clients, cells));
        }
    }
    let (mut table, mut times) = (table(effort), times::table());
    for (namespaces, clients, cells) in &measured {
        for (n, way) in Way::ALL.into_iter().enumerate() {
            table.rows.push(row(*namespaces, *clients, way, &cells[n], cells));
            let name = format!("{clients} into {namespaces}, {}", way.name());
            times.rows.push(
                std::iter::once(name)
                    .chain(cells[n].times.cells(cells[n].creates, way.replicas().is_some()))
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

async fn turn_of(
    ground: &Ground,
    way: Way,
    load: Load,
    names: &Arc<AtomicU64>,
    cell: &mut Cell,
) -> Result<()> {
    const WRITES: &str = "job_handler_limit_ledger_writes_total";
    const CONFLICTS: &str = "job_handler_limit_ledger_conflicts_total";
    const READS: &str = "job_handler_limit_consistent_reads_total";
    if let Some(replicas) = way.replicas() {
        ground.ask(replicas).await?;
    }
    let times = Times::now(ground).await?;
    let before =
        [ground.counter(WRITES).await?, ground.counter(CONFLICTS).await?, ground.counter(READS).await?];
    let begin = Instant::now();
    // Connections are made, and caches filled, in the first part, which is not counted.
    let counted = begin + load.time / 4;
    let until = counted + load.time;
    let mut tasks = JoinSet::new();
    for client in 0..load.clients {
        let connection = ground.cluster.client();
        let load = Turn { way, namespaces: load.namespaces, counted, until, first: client };
        tasks.spawn(create(connection, load, names.clone()));
    }
    let (mut latencies, mut all) = (Latencies::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (seen, made) = done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&seen);
        all += made;
    }
    let elapsed = counted.elapsed();
    cell.times.add(times, Times::now(ground).await?);
    for n in 0..load.namespaces {
        ground.clear(&namespace(way.namespaces(), n)).await?;
    }
    cell.per_second.push(latencies.count() as f64 / elapsed.as_secs_f64());
    cell.p50.push(latencies.quantile(0.5));
    cell.p99.push(latencies.quantile(0.99));
    cell.writes += ground.counter(WRITES).await? - before[0];
    cell.conflicts += ground.counter(CONFLICTS).await? - before[1];
    cell.reads += ground.counter(READS).await? - before[2];
    cell.creates += all;
    Ok(())
}

struct Turn {
    way: Way,
    namespaces: usize,
    counted: Instant,
    until: Instant,
    first: usize,
}

async fn create(client: Client, turn: Turn, names: Arc<AtomicU64>) -> Result<(Latencies, u64)> {
    const NAME: &str = "bench-name";
    let what = format!("creating a Job with {}", turn.way.name());
    let targets: Vec<(String, String)> = (0..turn.namespaces)
        .map(|n| {
            let namespace = namespace(turn.way.namespaces(), n);
            let uri = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
            (uri, reviews::job(&namespace, NAME).to_string())
        })
        .collect();
    let (mut latencies, mut made, mut now) = (Latencies::new(), 0, Instant::now());
    for (uri, template) in targets.iter().cycle().skip(turn.first) {
        if now >= turn.until {
            break;
        }
        let body = template.replace(NAME, &format!("job-{}", names.fetch_add(1, Ordering::Relaxed)));
        let request = http::Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
        let before = Instant::now();
        // An answer that is not 2xx is an error.
        client.request_text(request).await.map_err(Error::api(what.clone()))?;
        now = Instant::now();
        made += 1;
        if before >= turn.counted {
            latencies.add(now - before);
        }
    }
    Ok((latencies, made))
}

impl Cell {
    fn each(&self, of: f64) -> f64 {
        of / self.creates as f64
    }
}

fn p50_ratio(cells: &Cells, of: Way, to: Way) -> f64 {
    median_ratio(&cells[of as usize].p50, &cells[to as usize].p50)
}

fn speed_ratio(cells: &Cells, of: Way, to: Way) -> f64 {
    median_ratio(&cells[of as usize].per_second, &cells[to as usize].per_second)
}

fn row(namespaces: usize, clients: usize, way: Way, cell: &Cell, cells: &Cells) -> Vec<String> {
    let milliseconds = |figures: &[f64]| format!("{:.2}", median(figures.iter().copied()) / 1e3);
    let ours = |value: f64| if way.replicas().is_some() { figure(value) } else { "-".to_owned() };
    vec![
        format!("{clients} into {namespaces}, {}", way.name()),
        figure(median(cell.per_second.iter().copied())),
        milliseconds(&cell.p50),
        milliseconds(&cell.p99),
        figure(p50_ratio(cells, way, Way::None)),
        figure(p50_ratio(cells, way, Way::NullsAndQuota)),
        figure(speed_ratio(cells, way, Way::NullsAndQuota)),
        ours(cell.each(cell.writes)),
        ours(cell.each(cell.conflicts)),
        ours(cell.each(cell.reads)),
    ]
}

fn aims(measured: &[(usize, usize, Cells)]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for way in [Way::One, Way::Three] {
        let ratios: Vec<(String, f64, f64)> = measured
            .iter()
            .map(|(namespaces, clients, cells)| {
                let slower = 1.0 / speed_ratio(cells, way, Way::NullsAndQuota);
                (format!("{clients} into {namespaces}"), p50_ratio(cells, way, Way::NullsAndQuota), slower)
            })
            .collect();
        let found: Vec<String> =
            ratios.iter().map(|(at, p50, slower)| format!("{at}: {p50:.2} and {slower:.2}")).collect();
        aims.push(Aim {
            what: format!(
                "{}: p50 at most 1.2 times, and throughput at least 1/1.2, of two null webhooks and quota",
                way.name()
            ),
            found: format!("p50 times, throughput one part in: {}", found.join("; ")),
            met: ratios.iter().all(|(_, p50, slower)| *p50 <= 1.2 && *slower <= 1.2),
        });
    }
    let most = measured.iter().map(|(_, clients, _)| *clients).max().unwrap_or_default();
    for (way, aim) in [(Way::One, 0.3), (Way::Three, 0.6)] {
        let at: Vec<(usize, f64)> = measured
            .iter()
            .filter(|(_, clients, _)| *clients == most)
            .map(|(namespaces, _, cells)| (*namespaces, &cells[way as usize]))
            .map(|(namespaces, cell)| (namespaces, cell.each(cell.writes)))
            .collect();
        let found: Vec<String> = at.iter().map(|(n, writes)| format!("{writes:.2} into {n}")).collect();
        aims.push(Aim {
            what: format!(
                "{}: ledger writes per admitted Job at c = {most} below {aim}, into one namespace",
                way.name()
            ),
            found: found.join(", "),
            met: at.iter().filter(|(namespaces, _)| *namespaces == 1).all(|(_, writes)| *writes < aim),
        });
    }
    aims
}

fn table(effort: &Effort) -> Table {
    let columns = [
        "clients into namespaces, way",
        "creates/s",
        "p50 ms",
        "p99 ms",
        "p50 of nothing's",
        "p50 of nulls and quota's",
        "creates/s of nulls and quota's",
        "ledger writes/Job",
        "conflicts/Job",
        "consistent reads/Job",
    ];
    let mut table = Table::new("Limits: Job creates through the apiserver", &columns);
    let Effort { rounds, time, .. } = effort;
    table.notes = vec![
        format!(
            "A cluster of its own (etcd, apiserver, scheduler, no audit log; the controller manager is paused, so that \
             nothing follows a create), everything on the same cores. Closed loop, one connection per client; {rounds} \
             rounds of {time:?} per way after a quarter of that to warm up; ways in turn within each round, the Jobs deleted \
             after each turn. Figures are medians over the rounds; ratios are medians of the ratios within each round."
        ),
        "Each way has namespaces of its own. Limits and quotas are never reached. The null webhooks run in the webhook's own \
         server, allow everything, and stand behind a balancer as ours do. Ours is the installed pair, three webhook \
         replicas and a sink; the balancer leads to one of them or to all."
            .to_owned(),
        "The policy only limits, so that no Job is changed: applying any patch costs the apiserver more than most limits do, \
         see the creates behind one webhook above."
            .to_owned(),
        "What limits: the two cores. A write of the ledger costs the apiserver about as much as one of a quota's status, and \
         both hold many grants where many come at once; ours is JSON, and watched by each replica. With many clients a create \
         waits for the write that is under way and for its own. The apiserver keeps 25 idle connections to a webhook \
         (client-go): where more wait there at once, each further call begins with a TLS handshake."
            .to_owned(),
        "Ledger writes are all writes that were tried, conflicts and removals included, from the first create until the \
         turn's Jobs are deleted."
            .to_owned(),
    ];
    table
}
