//! Refusals when a limit is full: of the webhook alone, and through the apiserver beside those of a quota.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Effort;
use super::ground::{Ground, Limited};
use crate::bench::load::Latencies;
use crate::bench::report::{Aim, Table, figure, median, median_ratio};
use crate::bench::reviews;
use crate::harness::error::{Error, Result};
use crate::net::https_client::{Connection, HttpsClient};

const QUOTA: &str = "null-full-0";
const OURS: &str = "ours-full-0";
const READS: &str = "job_handler_limit_consistent_reads_total";
/// Clients of the apiserver.
const CLIENTS: [usize; 2] = [50, 150];
/// To the webhook alone: refusals wait for one of at most 20 looks a second, so that few callers cannot get many.
const ALONE: usize = 400;

#[derive(Default)]
struct Cell {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    reads: Vec<f64>,
}

pub(super) async fn measure(ground: &Ground, effort: &Effort) -> Result<Table> {
    // The quota of a fresh namespace is counted by a controller, which is paused meanwhile.
    let controllers = ground.cluster.component(crate::cluster::Component::ControllerManager)?;
    controllers.cont()?;
    ground.namespace(QUOTA, Limited::Quota(1)).await?;
    ground.namespace(OURS, Limited::Policy(1)).await?;
    controllers.stop()?;
    let client = ground.cluster.client();
    for namespace in [QUOTA, OURS] {
        let first = post(&client, namespace, "first").await?;
        if let Err(why) = first {
            return Err(Error::Invalid(format!("the first Job in {namespace}: {why}")));
        }
    }
    let mut table = table();
    let alone = alone(ground, effort).await?;
    table.rows.push(row(&format!("the webhook alone, 1 replica, {ALONE} clients"), &alone, None));
    let rate = median(alone.per_second.iter().copied());
    table.aims.push(Aim {
        what: "the webhook alone refuses at least 5,000 a second".to_owned(),
        found: figure(rate),
        met: rate >= 5000.0,
    });
    let mut reads = vec![(median(alone.reads.iter().copied()), 1.0)];
    for clients in CLIENTS {
        let [quota, one, three] = through(ground, effort, clients).await?;
        for (who, cell) in [
            ("two null webhooks, quota", &quota),
            ("our limit, 1 replica", &one),
            ("our limit, 3 replicas", &three),
        ] {
            table.rows.push(row(&format!("apiserver, {clients} clients: {who}"), cell, Some(&quota)));
        }
        let ratios = [&one, &three].map(|ours| median_ratio(&ours.p50, &quota.p50));
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
        what: "at most 20 consistent reads a second and replica".to_owned(),
        found: reads.iter().map(|(reads, _)| figure(*reads)).collect::<Vec<_>>().join(", "),
        met: reads.iter().all(|(reads, replicas)| *reads <= 20.0 * replicas),
    });
    Ok(table)
}

/// Reviews to `/validate` of one replica, each of another Job.
async fn alone(ground: &Ground, effort: &Effort) -> Result<Cell> {
    let secrets: Api<Secret> = Api::namespaced(ground.cluster.client(), job_handler_shared::keys::NAMESPACE);
    let secret = secrets.get("job-handler-ca").await.map_err(Error::api("the CA"))?;
    let ca = secret.data.unwrap_or_default().remove("ca.crt").map(|pem| pem.0).unwrap_or_default();
    let port = ground.pair.webhook(0).port();
    let https = HttpsClient::new(ca, (std::net::Ipv4Addr::LOCALHOST, port).into())?;
    let template = Arc::new(review()?);
    let (numbers, mut cell) = (Arc::new(AtomicU64::new(0)), Cell::default());
    // The first round warms up.
    for round in 0..=effort.rounds {
        let mut tasks = JoinSet::new();
        let before = ground.counter(READS).await?;
        let begin = Instant::now();
        for _ in 0..ALONE {
            let connection = https.connect().await?;
            tasks.spawn(refused(connection, template.clone(), numbers.clone(), begin + effort.time));
        }
        let latencies = joined(tasks).await?;
        if round > 0 {
            cell.add(&latencies, begin.elapsed(), ground.counter(READS).await? - before);
        }
    }
    Ok(cell)
}

async fn refused(
    mut connection: Connection,
    template: Arc<String>,
    numbers: Arc<AtomicU64>,
    until: Instant,
) -> Result<Latencies> {
    let (mut latencies, mut now) = (Latencies::new(), Instant::now());
    while now < until {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let body = template.replace(NUMBER, &format!("{n:012}"));
        let before = Instant::now();
        let answer = connection.post("/validate?timeout=10s", body).await?;
        now = Instant::now();
        if !(answer.status == 200 && answer.body.contains("\"code\":403")) {
            return Err(Error::Invalid(format!("expected a refusal, found {answer:?}")));
        }
        latencies.add(now - before);
    }
    Ok(latencies)
}

const NUMBER: &str = "000000number";

/// A review as the validating phase sees it: with the Job's name and uid.
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

async fn through(ground: &Ground, effort: &Effort, clients: usize) -> Result<[Cell; 3]> {
    let ways = [(QUOTA, None), (OURS, Some(1)), (OURS, Some(3))];
    let numbers = Arc::new(AtomicU64::new(0));
    let mut cells: [Cell; 3] = Default::default();
    for round in 0..=effort.rounds {
        for turn in 0..ways.len() {
            let n = (round + turn) % ways.len();
            let (namespace, replicas) = ways[n];
            if let Some(replicas) = replicas {
                ground.ask(replicas).await?;
            }
            let before = ground.counter(READS).await?;
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..clients {
                let (client, numbers, until) =
                    (ground.cluster.client(), numbers.clone(), begin + effort.time);
                tasks.spawn(async move {
                    let (mut latencies, mut now) = (Latencies::new(), Instant::now());
                    while now < until {
                        let name = format!("r{}", numbers.fetch_add(1, Ordering::Relaxed));
                        let before = Instant::now();
                        match post(&client, namespace, &name).await? {
                            Err(why)
                                if why.contains("exceeded quota") || why.contains("job limit reached") => {}
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
            let latencies = joined(tasks).await?;
            if round > 0 {
                cells[n].add(&latencies, begin.elapsed(), ground.counter(READS).await? - before);
            }
        }
    }
    Ok(cells)
}

async fn joined(mut tasks: JoinSet<Result<Latencies>>) -> Result<Latencies> {
    let mut latencies = Latencies::new();
    while let Some(done) = tasks.join_next().await {
        let seen = done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&seen);
    }
    Ok(latencies)
}

/// Creates a Job; the inner error is a refusal.
pub(super) async fn post(client: &Client, namespace: &str, name: &str) -> Result<Result<(), String>> {
    let what = format!("creating the Job {namespace}/{name}");
    let request = http::Request::post(format!("/apis/batch/v1/namespaces/{namespace}/jobs"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(reviews::job(namespace, name).to_string().into_bytes())
        .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
    match client.request_text(request).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Err(status.message.clone())),
        Err(error) => Err(Error::api(what)(error)),
    }
}

impl Cell {
    fn add(&mut self, latencies: &Latencies, elapsed: Duration, reads: f64) {
        self.per_second.push(latencies.count() as f64 / elapsed.as_secs_f64());
        self.p50.push(latencies.quantile(0.5));
        self.p99.push(latencies.quantile(0.99));
        self.reads.push(reads / elapsed.as_secs_f64());
    }
}

fn row(name: &str, cell: &Cell, quota: Option<&Cell>) -> Vec<String> {
    let milliseconds = |figures: &[f64]| format!("{:.2}", median(figures.iter().copied()) / 1e3);
    let of_quota = quota.map_or("-".to_owned(), |quota| figure(median_ratio(&cell.p50, &quota.p50)));
    vec![
        name.to_owned(),
        figure(median(cell.per_second.iter().copied())),
        milliseconds(&cell.p50),
        milliseconds(&cell.p99),
        of_quota,
        figure(median(cell.reads.iter().copied())),
    ]
}

fn table() -> Table {
    let columns = ["who refuses", "refusals/s", "p50 ms", "p99 ms", "p50 of quota's", "consistent reads/s"];
    let mut table = Table::new("Limits: refusals when full", &columns);
    table.notes = vec![format!(
        "Clients in a closed loop, and a limit of 1 that one Job holds. The webhook alone is asked by {ALONE} over TLS with \
         reviews of ever new Jobs; the client that asks shares its cores. A refusal waits for a look that begins after it \
         came, and of looks each replica makes 20 a second at most: so no client is refused by one replica more often than \
         that, and few clients that come again at once wait for 50 ms where a quota would answer sooner; this is the price \
         of never refusing because of a Job that has ended. With more clients it is the cores that limit. Figures are \
         medians over the rounds, ratios are taken within each round."
    )];
    table
}
