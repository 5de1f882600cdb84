//! The time from the end of a Job until its result is stored.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};

use crate::bench::harvest::cluster::{HarvestCluster, PATIENCE};
use crate::bench::harvest::measure::HarvestSizes;
use crate::bench::load::Latencies;
use crate::bench::seed::{complete, request_results, steadily};
use crate::bench::table::{Aim, Table, figure};
use crate::bench::watch::next_event;
use crate::cluster::jobs::finished;
use crate::harness::error::{Error, Result};

/// Lets Jobs finish steadily and measures the time between the benchmark's watch events «Job finished» and «result
/// stored».
pub(super) async fn measure(
    bench: &HarvestCluster,
    namespace: &str,
    sizes: HarvestSizes,
    table: &mut Table,
) -> Result<()> {
    let client = bench.cluster.client();
    request_results(&client, namespace).await?;
    let seeded = bench.seed(namespace, "steady", sizes.steady, false).await?;
    let finishing = steadily(&seeded, sizes.per_second, |name| {
        let (client, namespace) = (client.clone(), namespace.to_owned());
        async move { complete(&client, &namespace, &name).await }
    });
    let (lags, ()) = tokio::try_join!(lags(&client, namespace, sizes.steady), finishing)?;
    let (p50, p99) = (lags.quantile(0.5) / 1e3, lags.quantile(0.99) / 1e3);
    let what = format!("lag at {} Jobs/s", sizes.per_second);
    table.rows.push(vec![format!("{what}, p50"), figure(p50), "ms".into()]);
    table.rows.push(vec![format!("{what}, p99"), figure(p99), "ms".into()]);
    table.aims.push(Aim {
        what: "a lag of less than 100 ms at p50 and 1 s at p99".to_owned(),
        found: format!("{} and {} ms", figure(p50), figure(p99)),
        met: p50 < 100.0 && p99 < 1000.0,
    });
    table.notes.push(
        "Lag: the time between the benchmark's watch events «Job finished» and «result stored». Bottleneck: the calls of \
         one harvest, one after the other, while up to 20 harvests per second share the cores."
            .to_owned(),
    );
    Ok(())
}

async fn lags(client: &Client, namespace: &str, number: usize) -> Result<Latencies> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let mut jobs = watcher(jobs, watcher::Config::default()).boxed();
    let mut maps = watcher(maps, watcher::Config::default().labels("job-handler/created=true")).boxed();
    let (mut finished_at, mut stored) =
        (HashMap::<String, Instant>::new(), HashMap::<String, Instant>::new());
    let all = async {
        while finished_at.keys().filter(|name| stored.contains_key(*name)).count() < number {
            tokio::select! {
                event = next_event(&mut jobs) => if let Some(Event::Apply(job) | Event::InitApply(job)) = event?
                    && finished(&job).is_some()
                {
                    finished_at.entry(job.name_any()).or_insert_with(Instant::now);
                },
                event = next_event(&mut maps) => if let Some(Event::Apply(map) | Event::InitApply(map)) = event? {
                    let job = map.labels().get("job-name").cloned().unwrap_or_default();
                    stored.entry(job).or_insert_with(Instant::now);
                },
            }
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| Error::Timeout {
        what: "the results of Jobs that finish steadily".to_owned(),
        waited: PATIENCE,
        last: "some results are missing".to_owned(),
    })??;
    let lag = |(name, at): (&String, &Instant)| Some(stored.get(name)?.saturating_duration_since(*at));
    let mut lags = Latencies::new();
    finished_at.iter().filter_map(lag).for_each(|lag: Duration| lags.add(lag));
    Ok(lags)
}
