//! A cluster to play with, the pair installed on it.

use std::time::Duration;

use clap::Parser;
use job_handler_e2e::harness::{command_line, progress::print_line};
use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions};

/// Boots a Kubernetes cluster on this machine, installs job-handler on it and stays until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// How many webhook replicas (with a sink beside each) to run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    webhooks: u8,
    /// Also apply manifests/samples.
    #[arg(long)]
    samples: bool,
    /// The API server's port; any free one by default.
    #[arg(long)]
    port: Option<u16>,
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
    let cluster =
        Cluster::start(ClusterOptions { port: arguments.port, ..ClusterOptions::default() }).await?;
    print_line("installing job-handler");
    let webhooks = arguments.webhooks.into();
    let pair = Pair::install(&cluster, PairOptions { webhooks, ..PairOptions::default() }).await?;
    if arguments.samples {
        job_handler_e2e::pair::apply_samples(&cluster).await?;
    }
    // What a shell can take up goes to standard output, the rest to standard error.
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    if job_handler_e2e::cluster::on_path("kubectl").is_none() {
        println!(
            "export PATH=\"$PATH:{}\"",
            cluster.kubectl_path().parent().unwrap_or(cluster.dir()).display()
        );
        print_line("there is no kubectl on your PATH; the second line above adds one");
    }
    print_line(&format!(
        "logs are in {}; how pods fare: e2e/README.md; Ctrl-C ends it all",
        cluster.dir().join("logs").display()
    ));
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for member in pair.webhooks().iter().chain(pair.sinks()) {
            let Some(status) = member.process().exit_status() else { continue };
            let log = member.process().log();
            print_line(&format!(
                "{} ended ({status}), its log is {}; it is started again",
                member.name(),
                log.display()
            ));
            member.restart()?;
            // One that cannot live is not started as fast as it dies.
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
