//! The cost of limits: ledger writes per admitted Job, latency of creates, memory of a webhook. It is a measurement, so
//! it does not run with the other tests:
//!
//! `cargo test --release -p job-handler-e2e --test ledger_writes -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions, net::http_probe, wait_for};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

const CREATES: usize = 1500;
/// The counters whose increase per Job is printed.
const COUNTERS: [&str; 4] = ["ledger_writes", "ledger_conflicts", "ledger_removals", "consistent_reads"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test"]
async fn ledger_writes_per_admitted_job() {
    let sizes: Vec<usize> = match std::env::var("REPLICAS") {
        Ok(text) => vec![text.parse().unwrap()],
        Err(_) => vec![1, 3],
    };
    for replicas in sizes {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let options = PairOptions { webhooks: replicas, sinks: Some(1), ..PairOptions::default() };
        let pair = Pair::install(&cluster, options).await.unwrap();
        for connections in [1, 10, 50] {
            measure(&cluster, &pair, connections).await;
        }
        let memory: Vec<u64> =
            pair.webhooks().iter().filter_map(|member| resident_kib(member.process().id())).collect();
        println!("{replicas} replicas, memory of the webhooks in KiB: {memory:?}");
    }
}

async fn measure(cluster: &Cluster, pair: &Pair, connections: usize) {
    let namespace = cluster.namespace(&format!("c{connections}")).await.unwrap();
    apply_limit(cluster, &namespace).await;
    let creates = if connections == 1 { CREATES / 10 } else { CREATES };
    let (before, start, next) = (counters(pair).await, Instant::now(), AtomicUsize::new(0));
    let times = join_all((0..connections).map(|_| async {
        // Each client has its own connection.
        let jobs: Api<Job> = Api::namespaced(cluster.client(), &namespace);
        let mut times = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= creates {
                return times;
            }
            let start = Instant::now();
            jobs.create(&PostParams::default(), &job(&format!("j{n}"))).await.unwrap();
            times.push(start.elapsed());
        }
    }));
    let mut times: Vec<Duration> = times.await.concat();
    let elapsed = start.elapsed();
    times.sort();
    let after = counters(pair).await;
    let per_job: Vec<String> = COUNTERS
        .iter()
        .zip(after.iter().zip(before))
        .map(|(name, (after, before))| format!("{name} {:.3}", (after - before) / creates as f64))
        .collect();
    println!(
        "{} replicas, c = {connections}: p50 {:.1?}, p95 {:.1?}, {:.0}/s; per admitted Job: {}",
        pair.webhooks().len(),
        times[times.len() / 2],
        times[times.len() * 95 / 100],
        creates as f64 / elapsed.as_secs_f64(),
        per_job.join(", ")
    );
}

async fn counters(pair: &Pair) -> [f64; COUNTERS.len()] {
    let mut sums = [0.0; COUNTERS.len()];
    for member in pair.webhooks() {
        let address = (Ipv4Addr::LOCALHOST, member.admin_port()).into();
        let (_, text) = http_probe::get(address, "/metrics").await.unwrap();
        for (sum, name) in sums.iter_mut().zip(COUNTERS) {
            let name = format!("job_handler_limit_{name}_total ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
            *sum += value.parse::<f64>().unwrap();
        }
    }
    sums
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

async fn apply_limit(cluster: &Cluster, namespace: &str) {
    let policies: Api<JobPolicy> = Api::namespaced(cluster.client(), namespace);
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": "many"},
        "spec": {"limits": [{"name": "many", "maxActiveJobs": 1_000_000}]},
    });
    policies.patch("many", &PatchParams::apply("test").force(), &Patch::Apply(&policy)).await.unwrap();
    wait_for(Duration::from_secs(60), "the policy to be Ready", || async {
        let status = policies.get("many").await.map_err(|e| e.to_string())?.status.unwrap_or_default();
        let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
    })
    .await
    .unwrap();
}

/// Without pods, so that only the create is measured.
fn job(name: &str) -> Job {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"parallelism": 0, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}},
    }))
    .unwrap()
}
