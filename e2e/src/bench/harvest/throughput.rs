//! The sink compared with a loop that makes the same calls.

use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bench::harvest::cluster::{HarvestCluster, wait_harvested};
use crate::bench::harvest::measure::HarvestSizes;
use crate::bench::machine;
use crate::bench::seed::{LOG_BYTES, request_results, send};
use crate::bench::table::{Aim, Table, figure, median, median_ratio};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// Jobs that the sink (`job_handler_sink::reconcile::job`) and the loop work on concurrently.
const CONCURRENCY: usize = 24;

/// Harvests as many Jobs by the sink as by the loop in each round.
pub(super) async fn measure(bench: &mut HarvestCluster, sizes: HarvestSizes) -> Result<Table> {
    let sink = bench.sink();
    let (mut by_sink, mut by_loop) = (Vec::new(), Vec::new());
    let mut processor = Duration::ZERO;
    for round in 0..sizes.rounds {
        // Alternate which side runs first.
        for turn in 0..2 {
            let namespace = bench.next_namespace()?;
            bench.seed(&namespace, "done", sizes.jobs, true).await?;
            if (round + turn) % 2 == 0 {
                let before = machine::processor_time(sink)?;
                let took = sink_time(&bench.cluster, &namespace, sizes.jobs).await?;
                by_sink.push(sizes.jobs as f64 / took.as_secs_f64());
                processor += machine::processor_time(sink)? - before;
            } else {
                let took = loop_time(&bench.cluster, &namespace, sizes.jobs).await?;
                by_loop.push(sizes.jobs as f64 / took.as_secs_f64());
            }
        }
    }
    Ok(table(sizes, &by_sink, &by_loop, processor))
}

/// The time from the creation of the policy until all results are complete and their Events are published.
async fn sink_time(cluster: &Cluster, namespace: &str, jobs: usize) -> Result<Duration> {
    let client = cluster.client();
    let begin = Instant::now();
    request_results(&client, namespace).await?;
    wait_harvested(&client, namespace, jobs).await?;
    Ok(begin.elapsed())
}

/// Makes the sink's calls for each Job, in its order and with its concurrency, and nothing else.
async fn loop_time(cluster: &Cluster, namespace: &str, jobs: usize) -> Result<Duration> {
    // One client, as in the sink.
    let client = cluster.client();
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..jobs {
        if tasks.len() >= CONCURRENCY {
            join(tasks.join_next().await)?;
        }
        let (client, namespace) = (client.clone(), namespace.to_owned());
        tasks.spawn(async move { harvest_by_loop(&client, &namespace, &format!("done-{n:06}")).await });
    }
    while !tasks.is_empty() {
        join(tasks.join_next().await)?;
    }
    Ok(begin.elapsed())
}

fn join(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Error::Invalid(format!("the loop panicked: {error}"))),
        None => Ok(()),
    }
}

async fn harvest_by_loop(client: &Client, namespace: &str, job: &str) -> Result<()> {
    let (maps, result) = (format!("/api/v1/namespaces/{namespace}/configmaps"), format!("{job}-results"));
    let (pods, result_uri) = (format!("/api/v1/namespaces/{namespace}/pods"), format!("{maps}/{result}"));
    let of_job = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{job}");
    let get = async |uri: &str| send(client, "GET", uri, &Value::Null).await;
    ensure_absent(get(&result_uri).await)?;
    let selector = format!("{pods}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{job}&limit=200");
    let found = get(&selector).await?;
    let pod = found["items"][0]["metadata"]["name"].as_str().unwrap_or_default();
    let request = http::Request::get(format!("{pods}/{pod}/log?container=main"))
        .body(Vec::new())
        .map_err(|error| Error::Invalid(format!("asking for a log: {error}")))?;
    let log = client.request_text(request).await.map_err(Error::api("reading a log"))?;
    ensure_absent(get(&result_uri).await)?;
    let map = json!({
        "metadata": {"name": result, "labels": {"job-name": job, "bench": "loop"}},
        "data": {"job-name": job, "status": "completed", "logs": log, "result.json": found["items"][0].to_string()},
    });
    send(client, "POST", &maps, &map).await?;
    let current = get(&of_job).await?;
    get(&result_uri).await?;
    let annotations = json!({"metadata": {
        "resourceVersion": current["metadata"]["resourceVersion"],
        // Only the sink sets its own keys.
        "annotations": {"bench-loop/status": "completed", "bench-loop/results": result},
    }});
    send(client, "PATCH", &of_job, &annotations).await?;
    get(&result_uri).await?;
    let event = json!({
        "metadata": {"name": format!("{job}.bench")}, "eventTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string(),
        "reportingController": "bench", "reportingInstance": "bench", "action": "Completed", "reason": "JobProcessing",
        "type": "Normal", "note": "Completed",
        "regarding": {"apiVersion": "batch/v1", "kind": "Job", "name": job, "namespace": namespace, "uid": current["metadata"]["uid"]},
    });
    send(client, "POST", &format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), &event).await?;
    send(client, "PATCH", &result_uri, &json!({"metadata": {"labels": {"published": "yes"}}})).await.map(drop)
}

fn ensure_absent(answer: Result<Value>) -> Result<()> {
    match answer {
        Ok(_) => Err(Error::Invalid("the result exists before the harvest".to_owned())),
        Err(Error::Api { cause, .. }) if matches!(&*cause, kube::Error::Api(status) if status.code == 404) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn table(sizes: HarvestSizes, by_sink: &[f64], by_loop: &[f64], processor: Duration) -> Table {
    let columns = ["harvested by", "Jobs/s", "vs. loop", "CPU ms/Job"];
    let mut table = Table::new(&sizes.title("Harvest of finished Jobs"), &columns);
    let ratio = median_ratio(by_sink, by_loop);
    let per_job = processor.as_secs_f64() * 1e3 / (sizes.jobs * sizes.rounds) as f64;
    table.rows = vec![
        vec!["loop".into(), figure(median(by_loop.iter().copied())), "1.00".into(), "-".into()],
        vec!["sink".into(), figure(median(by_sink.iter().copied())), figure(ratio), figure(per_job)],
    ];
    table.aims.push(Aim {
        what: "at least 0.80 of the loop's Jobs/s".to_owned(),
        found: figure(ratio),
        met: ratio >= 0.8,
    });
    table.notes.push(format!(
        "{} rounds of {} Jobs by the sink and by the loop each, alternating. Each Job has one pod and a log of {LOG_BYTES} \
         bytes; the benchmark writes the statuses while controllers and nodes are paused. The sink's time begins with the \
         creation of the policy. The loop makes the sink's calls in its order for {CONCURRENCY} Jobs at a time, without \
         checks.",
        sizes.rounds, sizes.jobs
    ));
    table.notes.push(
        "Bottleneck: the apiserver and etcd, which share the cores with sink and loop; ten of the sink's eleven calls per \
         Job are theirs. The sink's own part is its processor time per Job."
            .to_owned(),
    );
    table
}
