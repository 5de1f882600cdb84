//! Job creates through the apiserver: without a webhook, with the native policy, with a webhook that does nothing, and
//! with ours.

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
                let figures =
                    create_for(&cluster, &setup, Variant::ALL[n], clients, effort.time, &names).await?;
                if round > 0 {
                    cells[n].add(&figures.latencies, figures.elapsed);
                    cells[n].add_processor(figures.processor);
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
        "The process `job-handler-webhook` after all rounds: {} MiB resident, {} MiB peak.",
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
        let done = done.map_err(|error| Error::Invalid(format!("a client panicked: {error}")))??;
        latencies.merge(&done);
    }
    let figures = RoundFigures { elapsed: begin.elapsed(), processor: used()? - before, latencies };
    let calls = called(cluster, variant).await? - calls_before;
    if variant.webhook().is_some() && calls != figures.latencies.count() {
        let creates = figures.latencies.count();
        return Err(Error::Invalid(format!("{creates} creates in {} made {calls} calls", variant.name())));
    }
    variants::delete_jobs(cluster, variant.namespace()).await?;
    Ok(figures)
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
    while latencies.count() == 0 || now < until {
        let body = template.replace(NAME, &format!("job-{}", names.fetch_add(1, Ordering::Relaxed)));
        let request = http::Request::post(&uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(|error| Error::Invalid(format!("{what}: {error}")))?;
        let before = Instant::now();
        // Any status but 2xx is an error.
        let job = client.request_text(request).await.map_err(Error::api(what.clone()))?;
        now = Instant::now();
        latencies.add(now - before);
        if job.contains(r#""job-handler/stamped""#) != variant.stamps() {
            return Err(Error::Invalid(format!("{what}: unexpected stamps: {job}")));
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
            "{}. A webhook that always answers the same patch has {}: that part is the apiserver's own work on a patch. \
             Ours vs. the same patch: {}",
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
        "p50 vs. no webhook",
        "p50 vs. null webhook",
        "webhook CPU µs/create",
    ];
    let mut table = Table::new("Job creates through the apiserver", &columns);
    let LoadEffort { rounds, time } = effort;
    table.notes = vec![
        format!(
            "A cluster of its own (Kubernetes 1.36.3: etcd, apiserver, scheduler, no audit log; the controller manager \
             is paused, so that no pods are created), everything on the same cores: apiserver, etcd, clients, \
             webhooks. Closed loop; {rounds} rounds (after a warm-up round) of {time:?} per variant; each round runs all \
             variants and deletes the Jobs after each. Each figure is the median over the rounds; ratios are \
             medians of the ratios within each round."
        ),
        "Each variant has its own namespace and applies to that one only. The stamps of every answer are checked, and the \
         apiserver's count of webhook calls is compared with the number of creates."
            .to_owned(),
        "The native policy makes the same stamps with one JSON patch in CEL. Null webhook and «same patch» (the patch that \
         ours would answer, computed once) run in the webhook's HTTP server, each in its own process. Ours is the \
         installed pair, release build, with its own ServiceAccount and a running sink; its configuration is that of \
         the manifests except for the namespace and the URL; the policy is samples/builds.yaml \
         without limits and backoff, which would need a second call."
            .to_owned(),
        "The apiserver calls all webhooks directly, with HTTP/1.1 over TLS 1.3 (it would use HTTP/2 for localhost, but \
         not for a URL with 0.0.0.0). It keeps at most 25 idle connections (client-go), so that at 50 clients some calls \
         begin with a handshake, in all webhook variants alike."
            .to_owned(),
        "Bottleneck: at one client the work of apiserver and etcd per create; at 10 and 50 clients the fully used cores, so \
         that all processor time adds to all latencies."
            .to_owned(),
    ];
    table
}
