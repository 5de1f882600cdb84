//! How soon a failed Job is deleted after its result was stored, under `failedPolicy: AfterHarvest`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use job_handler_shared::keys::{CREATED, JOB_NAME};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::bench::load::Latencies;
use crate::bench::seed::{LOG_BYTES, SeedJobs, create_policy, fail, seed, steadily};
use crate::bench::table::{Aim, Table, figure};
use crate::bench::watch::next_event;
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// The longest wait.
const PATIENCE: Duration = Duration::from_secs(600);

/// Lets `jobs` Jobs fail, `per_second` each second. Nothing but the sink may change Jobs meanwhile.
///
/// # Errors
/// If a Job is not deleted, or a call fails.
pub async fn measure(cluster: &Cluster, namespace: &str, jobs: usize, per_second: u32) -> Result<Table> {
    let client = cluster.client();
    let policy = json!({"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}});
    create_policy(&client, namespace, policy).await?;
    let seeded = SeedJobs::with_logs(namespace, "failing", jobs);
    seed(cluster, &seeded).await?;
    let failing = steadily(&seeded, per_second, |name| {
        let (client, namespace) = (client.clone(), namespace.to_owned());
        async move { fail(&client, &namespace, &name).await }
    });
    let (delays, ()) = tokio::try_join!(deletion_delays(&client, namespace, jobs, PATIENCE), failing)?;
    let mut latencies = Latencies::new();
    delays.values().for_each(|delay| latencies.add(*delay));
    Ok(table(&latencies, per_second))
}

/// The time from the watch event of each Job's result to that of its deletion, for this number of Jobs. The two watches
/// are not synchronized: a deletion that is delivered before the result counts as zero.
///
/// # Errors
/// If fewer Jobs are deleted in time.
pub async fn deletion_delays(
    client: &Client,
    namespace: &str,
    jobs: usize,
    within: Duration,
) -> Result<HashMap<String, Duration>> {
    let all: Api<PartialObjectMeta<Job>> = Api::namespaced(client.clone(), namespace);
    let mut events = watcher(all, watcher::Config::default()).boxed();
    let results: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let with_results = watcher::Config::default().labels(&format!("{CREATED}=true"));
    let mut results = watcher(results, with_results).boxed();
    let (mut stored, mut deleted) = (HashMap::<String, Instant>::new(), HashMap::<String, Instant>::new());
    let count_measured = |stored: &HashMap<String, Instant>, deleted: &HashMap<String, Instant>| {
        deleted.keys().filter(|job| stored.contains_key(*job)).count()
    };
    let watching = async {
        while count_measured(&stored, &deleted) < jobs {
            tokio::select! {
                event = next_event(&mut events) => if let Some(Event::Delete(job)) = event? {
                    deleted.entry(job.name_any()).or_insert_with(Instant::now);
                },
                event = next_event(&mut results) => if let Some(Event::Apply(map) | Event::InitApply(map)) = event? {
                    let job = map.labels().get(JOB_NAME).cloned().unwrap_or_default();
                    stored.entry(job).or_insert_with(Instant::now);
                },
            }
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(within, watching).await {
        Ok(done) => done?,
        Err(_) => {
            let last = format!(
                "{} of {jobs} Jobs deleted; {} results stored",
                count_measured(&stored, &deleted),
                stored.len()
            );
            return Err(Error::Timeout {
                what: "the failed Jobs to be deleted".to_owned(),
                waited: within,
                last,
            });
        }
    }
    let delay =
        |(job, at): (&String, &Instant)| Some((job.clone(), at.saturating_duration_since(*stored.get(job)?)));
    Ok(deleted.iter().filter_map(delay).collect())
}

fn table(latencies: &Latencies, per_second: u32) -> Table {
    let mut table = Table::new("Deletion of failed Jobs after their harvest", &["delay", "ms"]);
    let at = |quantile: f64| latencies.quantile(quantile) / 1e3;
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        table.rows.push(vec![format!("result stored → Job deleted, {name}"), figure(at(quantile))]);
    }
    table.aims.push(Aim {
        what: "less than 5000 ms at p99".to_owned(),
        found: figure(at(0.99)),
        met: at(0.99) < 5_000.0,
    });
    table.notes.push(format!(
        "{} Jobs fail one after the other, {per_second} per second, under failedPolicy AfterHarvest, each with one pod and a \
         log of {LOG_BYTES} bytes. Both times are those of the benchmark's watches. Bottleneck: the four calls in between, which \
         annotate the Job, create the Event, record it in the result, and delete the Job.",
        latencies.count()
    ));
    table
}
