//! `cargo playground`: a local cluster with job-handler installed.

use std::time::Duration;

use clap::Parser;
use job_handler_e2e::harness::{command_line, progress::print_line};
use job_handler_e2e::pair::install_in_pods;
use job_handler_e2e::real_node::BUSYBOX_IMAGE;
use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions};

/// Boots a Kubernetes cluster on this machine, installs job-handler, and runs until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// Number of webhook replicas, each with a sink.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    webhooks: u8,
    /// Also apply manifests/samples.
    #[arg(long)]
    samples: bool,
    /// The API server's port; any free one by default.
    #[arg(long)]
    port: Option<u16>,
    /// Run containers on a real node, with the pair in pods. Needs root, containerd and more; see e2e/README.md.
    #[arg(long, conflicts_with = "webhooks")]
    real: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = command_line::parse::<Arguments>();
    tokio::select! {
        result = play(arguments) => result,
        result = interrupted() => result,
    }
}

async fn play(arguments: Arguments) -> anyhow::Result<()> {
    print_line("starting a cluster");
    let Arguments { port, real: real_node, .. } = arguments;
    let cluster = Cluster::start(ClusterOptions { port, real_node, ..ClusterOptions::default() }).await?;
    print_line("installing job-handler");
    let webhooks = arguments.webhooks.into();
    let pair = match real_node {
        true => {
            install_in_pods(&cluster).await?;
            None
        }
        false => Some(Pair::install(&cluster, PairOptions { webhooks, ..PairOptions::default() }).await?),
    };
    if arguments.samples {
        job_handler_e2e::pair::apply_samples(&cluster).await?;
    }
    // Commands to copy into a shell are written to standard output, messages to standard error.
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    if job_handler_e2e::cluster::on_path("kubectl").is_none() {
        println!(
            "export PATH=\"$PATH:{}\"",
            cluster.kubectl_path().parent().unwrap_or(cluster.dir()).display()
        );
        print_line("kubectl is not on your PATH; the second line above adds it");
    }
    let pods = match real_node {
        true => format!("pods can use the image {BUSYBOX_IMAGE}"),
        false => "e2e/README.md describes how to control simulated pods".to_owned(),
    };
    print_line(&format!(
        "logs are in {}; {pods}; Ctrl-C stops the cluster",
        cluster.dir().join("logs").display()
    ));
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for member in pair.iter().flat_map(|pair| pair.webhooks().iter().chain(pair.sinks())) {
            let Some(status) = member.process().exit_status() else { continue };
            let log = member.process().log();
            print_line(&format!(
                "{} ended ({status}), its log is {}; it is restarted",
                member.name(),
                log.display()
            ));
            member.restart()?;
            // Pause, so that a crashing program is not restarted in a tight loop.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

async fn interrupted() -> anyhow::Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminated.recv() => {}
    }
    print_line("ending");
    Ok(())
}
