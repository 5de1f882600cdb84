//! Boots a cluster, installs the pair, applies the sample policy, and runs all steps.

use std::time::{Duration, Instant};

use crate::build::{cluster_programs, pair_programs, run_cancellable};
use crate::cluster::{Cluster, ClusterOptions, E2E_KUBECONFIG};
use crate::demo::report::DemoReport;
use crate::demo::runner::{DemoOptions, DemoRunner};
use crate::demo::script::STEPS;
use crate::harness::error::{Error, Result};
use crate::pair::{Pair, PairOptions};

/// The namespaces of the demo.
const NAMESPACES: [&str; 3] = ["ci", "gitops", "legacy"];
/// The policy for the image builds.
const SAMPLE: &str = include_str!("../../../manifests/samples/builds.yaml");

/// Boots a cluster, installs the pair and runs every step. A step waits `patience` for each condition.
///
/// # Errors
/// If the cluster or the pair does not start. A failed step is in the report, not an error.
pub async fn run(patience: Duration) -> Result<DemoReport> {
    println!("Building the programs that are not built yet …");
    // Timed apart from the demo. An existing cluster needs no programs of ours.
    if std::env::var_os(E2E_KUBECONFIG).is_none_or(|path| path.is_empty()) {
        run_cancellable(cluster_programs).await?;
    }
    let sink = run_cancellable(pair_programs).await?.join("job-handler-sink");
    let begun = Instant::now();
    println!(
        "Booting Kubernetes (the real etcd, apiserver, controller-manager and scheduler; nodes simulated by KWOK) …"
    );
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let booted = begun.elapsed();
    println!("Installing job-handler from manifests/, with its own ServiceAccounts …");
    let installing = Instant::now();
    let _pair = Pair::install(&cluster, PairOptions::default()).await?;
    let installed = installing.elapsed();
    let options = DemoOptions { sink, patience, quiet: false };
    let mut runner = prepare(&cluster, options).await?;
    runner.record_time("booting Kubernetes", booted, None);
    runner.record_time("installing job-handler until it is ready", installed, None);
    for step in STEPS {
        runner.run_step(step).await;
    }
    runner.record_time("the whole demo", begun.elapsed(), Some(120.0));
    Ok(runner.into_report())
}

/// Creates the namespaces and the sample policy on a cluster with the pair installed.
///
/// # Errors
/// If the API server refuses them, or the policy does not become Ready.
pub async fn prepare(cluster: &Cluster, options: DemoOptions) -> Result<DemoRunner<'_>> {
    for namespace in NAMESPACES {
        let created = cluster.try_kubectl(&["create", "namespace", namespace], b"").await?;
        if !created.success && !created.stderr.contains("AlreadyExists") {
            return Err(Error::Invalid(format!("creating the namespace {namespace}: {}", created.stderr)));
        }
    }
    cluster.kubectl_with_input(&["apply", "-f", "-"], SAMPLE).await?;
    let ready = ["wait", "jobpolicy/builds", "-n", "ci", "--for=condition=Ready", "--timeout=90s"];
    cluster.kubectl(&ready).await?;
    Ok(DemoRunner::new(cluster, options))
}
