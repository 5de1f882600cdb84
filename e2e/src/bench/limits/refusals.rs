//! Refusals when a limit is reached: by the webhook alone, and through the apiserver compared with those of a quota.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bench::limits::create_jobs::create;
use crate::bench::limits::limits_cluster::{LimitsCluster, NamespaceLimit};
use crate::bench::limits::measure::LimitsEffort;
use crate::bench::load::Latencies;
use crate::bench::reviews;
use crate::bench::samples::LoadSamples;
use crate::bench::table::{Aim, Table, figure, median};
use crate::harness::error::{Error, Result};
use crate::net::https_client::{Connection, HttpsClient};
use crate::pair::review_path;

const QUOTA: &str = "null-full-0";
const OURS: &str = "ours-full-0";
const READS: &str = "job_handler_limit_consistent_reads_total";
/// Clients of the apiserver.
const CLIENTS: [usize; 2] = [50, 150];
/// Clients of the webhook alone. Refusals wait for one of at most 20 reads per second, so that the rate grows with
/// clients.
const WEBHOOK_CLIENTS: usize = 400;

#[derive(Default)]
struct RefusalSamples {
    load: LoadSamples,
    /// Consistent reads per second.
    reads: Vec<f64>,
}

pub(super) async fn measure(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<Table> {
    // The controller that counts the quota of a new namespace is paused.
    let controllers = bench.cluster.component(crate::cluster::Component::ControllerManager)?;
    controllers.cont()?;
    bench.namespace(QUOTA, NamespaceLimit::Quota(1)).await?;
    bench.namespace(OURS, NamespaceLimit::Policy(1)).await?;
    controllers.stop()?;
    let client = bench.cluster.client();
    for namespace in [QUOTA, OURS] {
        let first = create(&client, namespace, "first").await?;
        if let Err(message) = first {
            return Err(Error::Invalid(format!("the first Job in {namespace}: {message}")));
        }
    }
    let mut table = table();
    let webhook_only = measure_webhook(bench, effort).await?;
    table.rows.push(row(
        &format!("the webhook alone, 1 replica, {WEBHOOK_CLIENTS} clients"),
        &webhook_only,
        None,
    ));
    let rate = webhook_only.load.per_second();
    table.aims.push(Aim {
        what: "the webhook alone refuses at least 5,000 requests/s".to_owned(),
        found: figure(rate),
        met: rate >= 5000.0,
    });
    let mut reads = vec![(median(webhook_only.reads.iter().copied()), 1.0)];
    for clients in CLIENTS {
        let [quota, one, three] = measure_apiserver(bench, effort, clients).await?;
        for (refused_by, cell) in [
            ("two null webhooks and quota", &quota),
            ("our limit, 1 replica", &one),
            ("our limit, 3 replicas", &three),
        ] {
            table.rows.push(row(&format!("apiserver, {clients} clients: {refused_by}"), cell, Some(&quota)));
        }
        let ratios = [&one, &three].map(|ours| ours.load.p50_ratio(&quota.load));
        table.aims.push(Aim {
            what: format!(
                "through the apiserver, {clients} clients: a p50 of at most 1.3 times that of the quota's own refusals \
                 behind two null webhooks"
            ),
            found: format!("{:.2} with one replica, {:.2} with three", ratios[0], ratios[1]),
            met: ratios.iter().all(|ratio| *ratio <= 1.3),
        });
        reads.extend([(&one, 1.0), (&three, 3.0)].map(|(cell, n)| (median(cell.reads.iter().copied()), n)));
    }
    table.aims.push(Aim {
        what: "at most 20 consistent reads/s per replica".to_owned(),
        found: reads.iter().map(|(reads, _)| figure(*reads)).collect::<Vec<_>>().join(", "),
        met: reads.iter().all(|(reads, replicas)| *reads <= 20.0 * replicas),
    });
    Ok(table)
}

/// Sends reviews to `/validate` of one replica, each for another Job.
async fn measure_webhook(bench: &LimitsCluster, effort: &LimitsEffort) -> Result<RefusalSamples> {
    let secrets: Api<Secret> = Api::namespaced(bench.cluster.client(), job_handler_shared::keys::NAMESPACE);
    let secret = secrets.get("job-handler-ca").await.map_err(Error::api("the CA"))?;
    let ca = secret.data.unwrap_or_default().remove("ca.crt").map(|pem| pem.0).unwrap_or_default();
    let port = bench.pair.webhook(0).port();
    let https = HttpsClient::new(ca, (std::net::Ipv4Addr::LOCALHOST, port).into())?;
    let template = Arc::new(review()?);
    let path = review_path(bench.cluster.client(), job_handler_shared::keys::VALIDATE_PATH).await?;
    let path: Arc<str> = format!("{path}?timeout=10s").into();
    let (numbers, mut cell) = (Arc::new(AtomicU64::new(0)), RefusalSamples::default());
    // The first round warms up.
    for round in 0..=effort.rounds {
        let mut tasks = JoinSet::new();
        let before = bench.counter(READS).await?;
        let begin = Instant::now();
        for _ in 0..WEBHOOK_CLIENTS {
            let connection = https.connect().await?;
            let until = begin + effort.time;
            tasks.spawn(send_refused(connection, path.clone(), template.clone(), numbers.clone(), until));
        }
        let latencies = merge_latencies(tasks).await?;
        if round > 0 {
            cell.add(&latencies, begin.elapsed(), bench.counter(READS).await? - before);
        }
    }
    Ok(cell)
}

async fn send_refused(
    mut connection: Connection,
    path: Arc<str>,
    template: Arc<String>,
    numbers: Arc<AtomicU64>,
    until: Instant,
) -> Result<Latencies> {
    let (mut latencies, mut now) = (Latencies::new(), Instant::now());
    while latencies.count() == 0 || now < until {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let body = template.replace(NUMBER, &format!("{n:012}"));
        let before = Instant::now();
        let answer = connection.post(&path, body).await?;
        now = Instant::now();
        if !(answer.status == 200 && answer.body.contains("\"code\":403")) {
            return Err(Error::Invalid(format!("expected a refusal, found {answer:?}")));
        }
        latencies.add(now - before);
    }
    Ok(latencies)
}

const NUMBER: &str = "000000number";

/// A review of the validating phase, which has the Job's name and uid.
fn review() -> Result<String> {
    let bytes = reviews::review_in(OURS);
    let mut review: Value =
        serde_json::from_slice(&bytes).map_err(|error| Error::Invalid(format!("the review: {error}")))?;
    let uid = |kind: &str| json!(format!("{kind}-4bd9-418c-bf80-{NUMBER}"));
    review["request"]["uid"] = uid("f0788041");
    review["request"]["dryRun"] = json!(false);
    review["request"]["name"] = json!(format!("j-{NUMBER}"));
    let metadata = &mut review["request"]["object"]["metadata"];
    metadata["uid"] = uid("a1788041");
    metadata["name"] = json!(format!("j-{NUMBER}"));
    metadata["namespace"] = json!(OURS);
    Ok(review.to_string())
}

async fn measure_apiserver(
    bench: &LimitsCluster,
    effort: &LimitsEffort,
    clients: usize,
) -> Result<[RefusalSamples; 3]> {
    let methods = [(QUOTA, None), (OURS, Some(1)), (OURS, Some(3))];
    let numbers = Arc::new(AtomicU64::new(0));
    let mut cells: [RefusalSamples; 3] = Default::default();
    for round in 0..=effort.rounds {
        for turn in 0..methods.len() {
            let n = (round + turn) % methods.len();
            let (namespace, replicas) = methods[n];
            if let Some(replicas) = replicas {
                bench.use_replicas(replicas).await?;
            }
            let before = bench.counter(READS).await?;
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..clients {
                let (client, numbers, until) = (bench.cluster.client(), numbers.clone(), begin + effort.time);
                tasks.spawn(async move {
                    let (mut latencies, mut now) = (Latencies::new(), Instant::now());
                    while latencies.count() == 0 || now < until {
                        let name = format!("r{}", numbers.fetch_add(1, Ordering::Relaxed));
                        let before = Instant::now();
                        match create(&client, namespace, &name).await? {
                            Err(message)
                                if message.contains("exceeded quota")
                                    || message.contains("job limit reached") => {}
                            other => {
                                return Err(Error::Invalid(format!("expected a refusal, found {other:?}")));
                            }
                        }
                        now = Instant::now();
                        latencies.add(now - before);
                    }
                    Ok(latencies)
                });
            }
            let latencies = merge_latencies(tasks).await?;
            if round > 0 {
                cells[n].add(&latencies, begin.elapsed(), bench.counter(READS).await? - before);
            }
        }
    }
    Ok(cells)
}

async fn merge_latencies(mut tasks: JoinSet<Result<Latencies>>) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    while let Some(done) = tasks.join_next().await {
        let task_latencies =
            done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&task_latencies);
    }
    Ok(latencies)
}

impl RefusalSamples {
    fn add(&mut self, latencies: &Latencies, elapsed: Duration, reads: f64) {
        self.load.add(latencies, elapsed);
        self.reads.push(reads / elapsed.as_secs_f64());
    }
}

fn row(name: &str, samples: &RefusalSamples, quota: Option<&RefusalSamples>) -> Vec<String> {
    let [per_second, p50, p99] = samples.load.cells();
    let of_quota = quota.map_or("-".to_owned(), |quota| figure(samples.load.p50_ratio(&quota.load)));
    vec![name.to_owned(), per_second, p50, p99, of_quota, figure(median(samples.reads.iter().copied()))]
}

fn table() -> Table {
    let columns = ["refused by", "refusals/s", "p50 ms", "p99 ms", "p50 vs. quota", "consistent reads/s"];
    let mut table = Table::new("Limits: refusals at the limit", &columns);
    table.notes = vec![format!(
        "Closed loop, under a limit of 1 with one active Job. {WEBHOOK_CLIENTS} clients send reviews of new Jobs to the webhook alone \
         over TLS, on the same cores. Before it refuses, the webhook reads the Jobs consistently, at most 20 times per \
         second and replica. A client that retries immediately therefore waits up to 50 ms, where a quota would refuse \
         sooner; in return, a Job that has just finished never causes a refusal. With more clients the cores are the \
         bottleneck. Figures are medians over the rounds, ratios are medians of the ratios within each round."
    )];
    table
}
