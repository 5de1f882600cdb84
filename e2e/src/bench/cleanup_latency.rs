//! How soon a failed Job is gone after its result was stored, where its policy asks for that.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use job_handler_shared::keys::{API_GROUP, API_VERSION, CREATED, JOB_NAME};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::bench::load::Latencies;
use crate::bench::report::{Aim, Table, figure};
use crate::bench::seed::{Seed, seed, send};
use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// Nothing of this takes longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of each Job's log.
const LOG: u64 = 2 << 10;

/// Lets `jobs` Jobs fail, `per_second` of them a second, under a policy that has failed Jobs deleted after their harvest.
/// Nobody but the sink may be working on Jobs meanwhile.
///
/// # Errors
/// If a Job stays, or a call fails.
pub async fn measure(cluster: &Cluster, namespace: &str, jobs: usize, per_second: u32) -> Result<Table> {
    let client = cluster.client();
    let policy = json!({
        "apiVersion": format!("{API_GROUP}/{API_VERSION}"), "kind": "JobPolicy",
        "metadata": {"name": "bench", "namespace": namespace},
        "spec": {"results": {}, "cleanup": {"failedPolicy": "AfterHarvest"}},
    });
    let policies = format!("/apis/{API_GROUP}/{API_VERSION}/namespaces/{namespace}/jobpolicies");
    send(&client, "POST", &policies, &policy).await?;
    let seeded = Seed {
        namespace: namespace.to_owned(),
        prefix: "failing".to_owned(),
        jobs,
        groups: None,
        log_bytes: Some(LOG),
        ttl: None,
        finished: false,
    };
    seed(cluster, &seeded).await?;
    let failing = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
        for n in 0..jobs {
            ticks.tick().await;
            fail(&client, namespace, &seeded.name(n)).await?;
        }
        Ok(())
    };
    let (gaps, ()) = tokio::try_join!(gaps(&client, namespace, jobs, PATIENCE), failing)?;
    let mut latencies = Latencies::new();
    gaps.values().for_each(|gap| latencies.add(*gap));
    Ok(table(&latencies, per_second))
}

/// From the watch event of each Job's result until that of its deletion, for so many Jobs of a namespace. The order of
/// events of two watches is not known to a millisecond: a deletion that is seen first counts as none.
///
/// # Errors
/// If fewer are gone by then.
pub async fn gaps(
    client: &Client,
    namespace: &str,
    jobs: usize,
    within: Duration,
) -> Result<HashMap<String, Duration>> {
    let all: Api<PartialObjectMeta<Job>> = Api::namespaced(client.clone(), namespace);
    let mut events = watcher(all, watcher::Config::default()).boxed();
    let results: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let made = watcher::Config::default().labels(&format!("{CREATED}=true"));
    let mut results = watcher(results, made).boxed();
    let (mut stored, mut gone) = (HashMap::<String, Instant>::new(), HashMap::<String, Instant>::new());
    let both = |stored: &HashMap<String, Instant>, gone: &HashMap<String, Instant>| {
        gone.keys().filter(|job| stored.contains_key(*job)).count()
    };
    let watching = async {
        while both(&stored, &gone) < jobs {
            tokio::select! {
                event = next(&mut events) => if let Some(Event::Delete(job)) = event? {
                    gone.entry(job.name_any()).or_insert_with(Instant::now);
                },
                event = next(&mut results) => if let Some(Event::Apply(map) | Event::InitApply(map)) = event? {
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
            let last = format!("{} of {jobs} are gone; stored are {}", both(&stored, &gone), stored.len());
            return Err(Error::Timeout { what: "failed Jobs to be gone".to_owned(), waited: within, last });
        }
    }
    let gap =
        |(job, at): (&String, &Instant)| Some((job.clone(), at.saturating_duration_since(*stored.get(job)?)));
    Ok(gone.iter().filter_map(gap).collect())
}

async fn next<K>(events: &mut BoxStream<'_, Result<Event<K>, watcher::Error>>) -> Result<Option<Event<K>>> {
    match events.try_next().await {
        Ok(Some(event)) => Ok(Some(event)),
        Ok(None) => Err(Error::Invalid("a watch ended".to_owned())),
        // The watcher goes on by itself.
        Err(_) => Ok(None),
    }
}

/// Writes that a Job has failed just now.
async fn fail(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit", "lastProbeTime": now, "lastTransitionTime": now})
    };
    let status = json!({"status": {
        "startTime": now, "failed": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {},
        "conditions": [condition("FailureTarget"), condition("Failed")],
    }});
    let uri = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}/status");
    send(client, "PATCH", &uri, &status).await.map(drop)
}

fn table(latencies: &Latencies, per_second: u32) -> Table {
    let mut table = Table::new("Failed Jobs that go after their harvest", &["what", "ms"]);
    let at = |quantile: f64| latencies.quantile(quantile) / 1e3;
    for (what, quantile) in [("p50", 0.5), ("p99", 0.99), ("the longest", 1.0)] {
        table.rows.push(vec![format!("result stored → Job gone, {what}"), figure(at(quantile))]);
    }
    table.aims.push(Aim {
        what: "less than 5000 ms at p99".to_owned(),
        found: figure(at(0.99)),
        met: at(0.99) < 5_000.0,
    });
    table.notes.push(format!(
        "{} Jobs that fail one after the other, {per_second} a second, under failedPolicy AfterHarvest, each with one pod and \
         a log of {LOG} bytes; both times are those of the bench's own watches. What limits it: four calls lie in between, the \
         mark, the Event, its note in the result, and the deletion.",
        latencies.count()
    ));
    table
}
