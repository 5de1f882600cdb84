//! `job-handler-sink`: arguments in, the library's `run` or `prune`.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use job_handler_shared::{
    keys,
    kube::client,
    policy::{bytes::Bytes, cleanup::Keep},
    process::{supervisor::ShutdownSignals, telemetry},
};
use job_handler_sink::{PROGRAM, VERSION, config::Config, prune::command, run};

/// Harvests finished Jobs, tells of them and prunes.
#[derive(Parser)]
#[command(name = "job-handler-sink", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
    /// How log lines look: text or json.
    #[arg(long, global = true, default_value = "text")]
    log_format: telemetry::LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until it is told to stop (the default).
    Run(RunArgs),
    /// Deletes all finished Jobs but the newest of each group, once, and exits. Uses your kubeconfig.
    Prune(PruneArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::SINK_ADMIN_PORT)))]
    admin_listen: SocketAddr,
    /// Namespace of job-handler.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    namespace: String,
    /// Name of this replica; unique among those that run. Default: host name and process id.
    #[arg(long, env = "POD_NAME")]
    replica: Option<String>,
    /// Unix socket on which the webhook tells of refusals.
    #[arg(long, default_value = keys::REFUSAL_SOCKET)]
    refusal_socket: PathBuf,
    /// Most bytes of stored results in the whole cluster, such as 1Gi: the oldest go first. 0 = no bound.
    #[arg(long, value_name = "BYTES", default_value = "1Gi")]
    results_max_bytes: Bytes,
    /// Configuration file (YAML): receivers of CloudEvents. Default: none.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct PruneArgs {
    /// Label key: Jobs of a namespace with the same value are one group.
    #[arg(long, value_name = "KEY")]
    group_label: String,
    /// Only this namespace; repeatable. Default: all but kube-system.
    #[arg(long)]
    namespace: Vec<String>,
    /// Jobs per page.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// So many of the newest Jobs of each group stay, whatever their outcome.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    keep_newest: u32,
    /// Besides, so many of the newest that completed.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
    keep_newest_succeeded: u32,
    /// Delete nothing: `client` only plans, `server` lets the apiserver check each deletion.
    #[arg(long, value_enum, default_value = "none", default_missing_value = "client", num_args = 0..=1, require_equals = true)]
    dry_run: command::DryRun,
    /// Also delete Jobs that a policy selected and on which no stored result is named: a result still to come is lost.
    #[arg(long)]
    unharvested: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init_logs(cli.log_format);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(start(cli)));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // Our errors tell their causes themselves.
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    // The one provider of the workspace; it fails only where one was installed before.
    let _: Result<_, _> = rustls::crypto::ring::default_provider().install_default();
    let mut signals = ShutdownSignals::listen().context("cannot handle signals")?;
    let client = client::build(PROGRAM, VERSION).await?;
    match cli.command {
        Some(Command::Prune(args)) => {
            let options = command::Options {
                group_label: args.group_label,
                namespaces: args.namespace,
                page: args.limit,
                keep: Keep { newest: args.keep_newest, newest_succeeded: args.keep_newest_succeeded },
                dry_run: args.dry_run,
                unharvested: args.unharvested,
            };
            let mut out = std::io::stdout();
            let report = tokio::select! {
                report = command::prune(client, &options, &mut out) => report?,
                signal = signals.next() => anyhow::bail!("{signal}: interrupted; what was deleted stays deleted"),
            };
            Ok(if report.failed > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
        }
        Some(Command::Run(args)) => start_run(client, args, signals).await,
        None => start_run(client, cli.run, signals).await,
    }
}

async fn start_run(
    client: kube::Client,
    args: RunArgs,
    signals: ShutdownSignals,
) -> anyhow::Result<ExitCode> {
    let config = args.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    let options = run::Options {
        config,
        admin_listen: args.admin_listen,
        namespace: args.namespace,
        replica: args.replica.unwrap_or_else(|| run::default_replica().to_string()),
        refusal_socket: args.refusal_socket,
        results_max_bytes: Some(args.results_max_bytes.0).filter(|bytes| *bytes > 0),
    };
    run::run(client, options, signals).await?;
    Ok(ExitCode::SUCCESS)
}
