//! Several policies with the same limit on the same Jobs: for each of them the apiserver asks a replica about every create.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use job_handler_shared::keys;
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client};
use tokio::task::JoinSet;

use crate::bench::limits::create_jobs::create;
use crate::bench::limits::limits_cluster::LimitsCluster;
use crate::bench::limits::measure::LimitsEffort;
use crate::bench::limits::queue_drain::complete;
use crate::bench::table::{Aim, Table, figure};
use crate::bench::variants::api;
use crate::harness::error::{Error, Result};

/// Replicas and policies: 1 to this number of each.
const MOST: usize = 3;
/// The limit.
const SLOTS: u32 = 4;
const CLIENTS: usize = 12;
/// The run time of each Job.
const RUN_TIME: Duration = Duration::from_millis(300);
/// The pause of a client after a refusal.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the ledger is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What one combination of replicas and policies did.
#[derive(Clone, Copy, Default)]
struct OverlapSamples {
    jobs: usize,
    seconds: f64,
    oldest: Duration,
}

pub(super) async fn measure(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<Table> {
    for policies in 1..=MOST {
        bench.overlapping(&namespace(policies), SLOTS, policies).await?;
    }
    let mut samples = [[OverlapSamples::default(); MOST]; MOST];
    for round in 0..effort.rounds.div_ceil(3) {
        for replicas in 1..=MOST {
            bench.use_replicas(replicas).await?;
            for turn in 0..MOST {
                // Each round begins with another number, so that the order does not favour one.
                let policies = (round + turn) % MOST + 1;
                let time = effort.time * 16;
                run(bench, &namespace(policies), time, &mut samples[replicas - 1][policies - 1]).await?;
            }
        }
    }
    Ok(table(&samples, effort))
}

fn namespace(policies: usize) -> String {
    format!("ours-overlap-{policies}")
}

/// Clients that create one Job after the other, which run for a while.
async fn run(
    bench: &LimitsCluster,
    namespace: &str,
    time: Duration,
    samples: &mut OverlapSamples,
) -> Result<()> {
    let begin = Instant::now();
    let until = begin + time;
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(client(bench.cluster.client(), namespace.to_owned(), n, until));
    }
    let oldest = oldest_attempt(bench, namespace, until).await?;
    while let Some(done) = clients.join_next().await {
        samples.jobs += done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
    }
    samples.seconds += begin.elapsed().as_secs_f64();
    samples.oldest = samples.oldest.max(oldest);
    bench.clear(namespace).await
}

async fn client(client: Client, namespace: String, number: usize, until: Instant) -> Result<usize> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), &namespace);
    let mut created = 0;
    while Instant::now() < until {
        let name = format!("job-{number}-{created}-{}", until.elapsed().as_nanos());
        match create(&client, &namespace, &name).await? {
            Ok(()) => {
                created += 1;
                complete(jobs.clone(), name, RUN_TIME).await;
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(created)
}

/// The longest time that an attempt was in the ledger.
async fn oldest_attempt(bench: &LimitsCluster, namespace: &str, until: Instant) -> Result<Duration> {
    let ledgers = api(&bench.cluster, keys::API_GROUP, keys::API_VERSION, "JobLedger", Some(keys::NAMESPACE));
    let (mut first_seen, mut oldest) = (HashMap::<String, Instant>::new(), Duration::ZERO);
    while Instant::now() < until {
        let ledger = ledgers.get(namespace).await.map_err(Error::api("reading a JobLedger"))?;
        let names = ledger.data["spec"]["pending"].as_object().into_iter().flat_map(serde_json::Map::values);
        let attempts = names.filter_map(serde_json::Value::as_object).flat_map(serde_json::Map::keys);
        let now = Instant::now();
        first_seen = attempts.map(|one| (one.clone(), first_seen.get(one).copied().unwrap_or(now))).collect();
        oldest = first_seen.values().map(|since| now - *since).fold(oldest, Duration::max);
        tokio::time::sleep(LOOK).await;
    }
    Ok(oldest)
}

fn table(samples: &[[OverlapSamples; MOST]; MOST], effort: &LimitsEffort) -> Table {
    let columns = ["replicas, policies", "Jobs/s", "vs. one policy", "oldest attempt s"];
    let mut table = Table::new("Limits: several policies on the same Jobs", &columns);
    table.notes = vec![format!(
        "{CLIENTS} clients create one Job after the other under {SLOTS} slots, and try again {PAUSE:?} after a refusal. The \
         Job controller is paused; a client completes its Job after {RUN_TIME:?}. {} rounds of {:?} for each combination. The \
         ledger is looked at every {LOOK:?}: the last column is the longest time for which it held a slot for a Job \
         that nobody had seen yet.",
        effort.rounds.div_ceil(3),
        effort.time * 16,
    )];
    let (mut ratios, mut oldest) = (Vec::new(), Duration::ZERO);
    for (replicas, row) in (1..).zip(samples) {
        for (policies, one) in (1..).zip(row) {
            let per_second = |samples: &OverlapSamples| samples.jobs as f64 / samples.seconds;
            let ratio = per_second(one) / per_second(&row[0]);
            ratios.push(ratio);
            oldest = oldest.max(one.oldest);
            table.rows.push(vec![
                format!("{replicas}, {policies}"),
                figure(per_second(one)),
                figure(ratio),
                figure(one.oldest.as_secs_f64()),
            ]);
        }
    }
    let least = ratios.into_iter().fold(f64::INFINITY, f64::min);
    table.aims = vec![
        Aim {
            what: "at least 0.9 of the throughput of one policy".to_owned(),
            found: figure(least),
            met: least >= 0.9,
        },
        Aim {
            what: "no attempt without a Job for more than 3 s".to_owned(),
            found: format!("{} s", figure(oldest.as_secs_f64())),
            met: oldest <= Duration::from_secs(3),
        },
    ];
    table
}
