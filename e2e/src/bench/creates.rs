//! Job creates through the apiserver: without a webhook, with the native policy, with a webhook that does nothing, and with
//! ours.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::task::JoinSet;

use crate::bench::load::Latencies;
use crate::bench::samples::LoadSamples;
use crate::bench::table::{Aim, Table, figure, mib};
use crate::bench::variants::{self, Variant, VariantSetup};
use crate::bench::webhook_only::LoadEffort;
use crate::bench::{machine, reviews};
use crate::cluster::{AuditLevel, Cluster, ClusterOptions, Component};
use crate::harness::error::{Error, Result};

/// Numbers of concurrent clients.
pub const CLIENTS: [usize; 3] = [1, 10, 50];

/// The figures of all variants under one load; the processor time is that of the webhook's process.
type VariantSamples = [LoadSamples; Variant::ALL.len()];

/// Boots a cluster and measures with each number of clients. `program` is `bench-all`, which starts the servers.
///
/// # Errors
/// If something does not start, or a created Job is not stamped as its variant should.
pub async fn measure(program: &Path, effort: LoadEffort, at: &[usize]) -> Result<Table> {
    // The audit log would write each request to disk.
    let options = ClusterOptions { audit: AuditLevel::None, ..ClusterOptions::default() };
    let cluster = Cluster::start(options).await?;
    let setup = variants::set_up(&cluster, program).await?;
    // Pods are not created: only the creates are measured.
    cluster.component(Component::ControllerManager)?.stop()?;
    let names = Arc::new(AtomicU64::new(0));
    let mut measured: Vec<VariantSamples> = Vec::new();
    for &clients in at {
        let mut cells = VariantSamples::default();
        // The first round warms up.
        for round in 0..=effort.rounds {
            for turn in 0..Variant::ALL.len() {
                let n = (round + turn) % Variant::ALL.len();
                let seen =
                    create_for(&cluster, &setup, Variant::ALL[n], clients, effort.time, &names).await?;
                if round > 0 {
                    cells[n].add(&seen.latencies, seen.elapsed);
                    cells[n].add_processor(seen.processor);
                }
            }
        }
        measured.push(cells);
    }
    cluster.component(Component::ControllerManager)?.cont()?;
    let mut table = table(effort);
    for (&clients, cells) in at.iter().zip(&measured) {
        table.rows.extend(Variant::ALL.map(|variant| row(clients, variant, cells)));
    }
    table.aims.push(aim(at, &measured));
    let memory = machine::memory(setup.pair.webhook(0).process().id())?;
    table.notes.push(format!(
        "The process `job-handler-webhook` after all of this: {} MiB resident, {} MiB at its peak.",
        mib(memory.now),
        mib(memory.peak)
    ));
    Ok(table)
}

/// The figures of one variant in one round; the processor time is that of the webhook's process.
struct RoundFigures {
    latencies: Latencies,
    elapsed: Duration,
    processor: Duration,
}

/// Creates Jobs for `time`, then deletes them.
async fn create_for(
    cluster: &Cluster,
    setup: &VariantSetup,
    variant: Variant,
    clients: usize,
    time: Duration,
    names: &Arc<AtomicU64>,
) -> Result<RoundFigures> {
    let used = || match process(setup, variant) {
        Some(process) => machine::processor_time(process),
        None => Ok(Duration::ZERO),
    };
    let calls_before = called(cluster, variant).await?;
    let before = used()?;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        // A client has one connection.
        tasks.spawn(create_until(cluster.client(), variant, begin + time, names.clone()));
    }
    let mut latencies = Latencies::new();
    while let Some(done) = tasks.join_next().await {
        let seen = done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&seen);
    }
    let seen = RoundFigures { elapsed: begin.elapsed(), processor: used()? - before, latencies };
    let calls = called(cluster, variant).await? - calls_before;
    if variant.webhook().is_some() && calls != seen.latencies.count() {
        let creates = seen.latencies.count();
        return Err(Error::Invalid(format!("{creates} creates in {} made {calls} calls", variant.name())));
    }
    variants::delete_jobs(cluster, variant.namespace()).await?;
    Ok(seen)
}

async fn called(cluster: &Cluster, variant: Variant) -> Result<u64> {
    match variant.webhook() {
        Some(webhook) => variants::calls(cluster, webhook).await,
        None => Ok(0),
    }
}

async fn create_until(
    client: Client,
    variant: Variant,
    until: Instant,
    names: Arc<AtomicU64>,
) -> Result<Latencies> {
    const NAME: &str = "bench-name";
    let template = reviews::job(variant.namespace(), NAME).to_string();
    let uri = format!("/apis/batch/v1/namespaces/{}/jobs", variant.namespace());
    let what = format!("creating a Job with {}", variant.name());
    let mut latencies = Latencies::new();
    let mut now = Instant::now();
    while now < until {
        let body = template.replace(NAME, &format!("job-{}", names.fetch_add(1, Ordering::Relaxed)));
        let request = http::Request::post(&uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
        let before = Instant::now();
        // Any status but 2xx is an error.
        let made = client.request_text(request).await.map_err(Error::api(what.clone()))?;
        now = Instant::now();
        latencies.add(now - before);
        if made.contains(r#""job-handler/stamped""#) != variant.stamps() {
            return Err(Error::Invalid(format!("{what}: it is not stamped as it should be: {made}")));
        }
    }
    Ok(latencies)
}

fn process(setup: &VariantSetup, variant: Variant) -> Option<u32> {
    match variant {
        Variant::Bare | Variant::Native => None,
        Variant::Null => Some(setup.null.process()),
        Variant::SamePatch => Some(setup.same_patch.process()),
        Variant::Ours => Some(setup.pair.webhook(0).process().id()),
    }
}

/// The p50 of one variant as a multiple of another's.
fn ratio(cells: &VariantSamples, of: Variant, to: Variant) -> f64 {
    cells[of as usize].p50_ratio(&cells[to as usize])
}

fn row(clients: usize, variant: Variant, cells: &VariantSamples) -> Vec<String> {
    let samples = &cells[variant as usize];
    let [per_second, p50, p99] = samples.cells();
    vec![
        format!("{clients}, {}", variant.name()),
        per_second,
        p50,
        p99,
        figure(ratio(cells, variant, Variant::Bare)),
        figure(ratio(cells, variant, Variant::Null)),
        if variant.webhook().is_some() { figure(samples.processor_per_request()) } else { "-".to_owned() },
    ]
}

fn aim(clients: &[usize], measured: &[VariantSamples]) -> Aim {
    let each = |of: Variant, to: Variant| -> Vec<f64> {
        measured.iter().map(|cells| ratio(cells, of, to)).collect()
    };
    let at = |ratios: &[f64]| {
        let found = clients.iter().zip(ratios).map(|(c, ratio)| format!("{ratio:.2} at c = {c}"));
        found.collect::<Vec<_>>().join(", ")
    };
    let (ours, patched) = (each(Variant::Ours, Variant::Null), each(Variant::SamePatch, Variant::Null));
    let own = each(Variant::Ours, Variant::SamePatch);
    Aim {
        what: "a p50 of at most 1.1 times the null webhook's at every c".to_owned(),
        found: format!(
            "{}. A webhook that does nothing but answer the same patch again has {}: that part is the apiserver's own \
             work on a patch. Ours to that one: {}",
            at(&ours),
            at(&patched),
            at(&own)
        ),
        met: ours.iter().all(|ratio| *ratio <= 1.1),
    }
}

fn table(effort: LoadEffort) -> Table {
    let columns = [
        "clients, variant",
        "creates/s",
        "p50 ms",
        "p99 ms",
        "p50 of no webhook's",
        "p50 of null's",
        "webhook CPU µs/create",
    ];
    let mut table = Table::new("Job creates through the apiserver", &columns);
    let LoadEffort { rounds, time } = effort;
    table.notes = vec![
        format!(
            "A cluster of its own (Kubernetes 1.36.3: etcd, apiserver, scheduler, no audit log; the controller manager \
             is paused, so that nothing follows a create), everything on the same cores: apiserver, etcd, clients, \
             webhooks. Closed loop; {rounds} rounds (after one to warm up) of {time:?} per variant, variants in turn \
             within each round, the Jobs deleted after each turn. Each figure is the median over the rounds; ratios are \
             medians of the ratios within each round."
        ),
        "Each variant has a namespace of its own and is configured for that one alone. Every answer is checked for its \
         stamp, and the apiserver's own count of calls for each webhook against the number of creates."
            .to_owned(),
        "The native policy makes the same stamps by one JSON patch in CEL. Null webhook and «same patch» (the patch that \
         ours would answer, computed once) run in the webhook's own server, in a process each. Ours is the installed \
         pair, release build, under its own ServiceAccount, with the sink running beside it; its configuration is that of \
         the manifests but for the namespace and the address; the policy is samples/builds.yaml \
         without limits and backoff, which would be a second call."
            .to_owned(),
        "The apiserver speaks HTTP/1.1 over TLS 1.3 to all of them (a URL with 0.0.0.0, which it does not take for \
         localhost, where it would speak HTTP/2), directly. It keeps at most 25 idle connections (client-go), so that at \
         50 clients some calls begin with a handshake; that cost is in all webhook variants alike."
            .to_owned(),
        "What limits: at one client the apiserver's and etcd's own work per create; at 10 and 50 the cores, which are \
         full, so that every microsecond of processor time anywhere adds to everyone's latency."
            .to_owned(),
    ];
    table
}
