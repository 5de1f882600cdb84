//! The command line: raw arguments, resolved once into the options of what runs.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use job_handler_shared::{
    keys,
    kube::client,
    policy::{bytes::Bytes, cleanup::Keep},
    process::{supervisor::ShutdownSignals, telemetry::LogFormat},
};

use crate::{
    PROGRAM, VERSION,
    config::{Config, ConfigError},
    prune::command::{DryRun, PruneOptions, prune_until_signal},
    retention::plan::ClusterBudget,
    run::{RunOptions, default_replica, run},
};

/// Event sink of job-handler: harvests finished Jobs, reports them and prunes.
#[derive(Debug, Parser)]
#[command(name = "job-handler-sink", version, args_conflicts_with_subcommands = true)]
pub struct SinkArgs {
    #[command(subcommand)]
    subcommand: Option<SinkSubcommand>,
    #[command(flatten)]
    run: RunArgs,
    /// Format of log lines: text or json. RUST_LOG filters them.
    #[arg(long, global = true, default_value = "text")]
    pub log_format: LogFormat,
}

/// What the program does, with its options.
#[derive(Debug)]
enum SinkCommand {
    /// Runs the sink until a signal.
    Run(Box<RunOptions>),
    /// Prunes once.
    Prune(PruneOptions),
}

#[derive(Debug, Subcommand)]
enum SinkSubcommand {
    /// Runs until it receives a signal (the default).
    Run(RunArgs),
    /// Deletes all finished Jobs except the newest of each group, once, and exits. Uses your kubeconfig.
    Prune(PruneArgs),
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Address of /healthz, /readyz and /metrics (HTTP).
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], keys::SINK_ADMIN_PORT)))]
    admin_listen: SocketAddr,
    /// Serve /metrics only to those whose bearer token may get the path /metrics (TokenReview, SubjectAccessReview).
    #[arg(long)]
    metrics_auth: bool,
    /// Namespace of job-handler.
    #[arg(long, env = "POD_NAMESPACE", default_value = keys::NAMESPACE)]
    namespace: String,
    /// Namespaces to serve, comma-separated: Jobs and policies of others are ignored, and the rights to ConfigMaps, logs,
    /// Events and changes of Jobs are needed in these only (manifests/overlays/namespaces). Default: all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Name of this replica, unique among running replicas. Default: host name and process ID.
    #[arg(long, env = "POD_NAME")]
    replica: Option<String>,
    /// Unix socket on which the sink listens for refusals.
    #[arg(long, default_value = keys::REFUSAL_SOCKET)]
    refusal_socket: PathBuf,
    /// Maximum total size of stored results in the cluster, such as 1Gi. Namespaces share it: the oldest results of those
    /// that exceed their share are deleted first. 0 = unlimited.
    #[arg(long, value_name = "BYTES", default_value = "1Gi")]
    results_max_bytes: Bytes,
    /// Share of a namespace in that size, such as `ci=4`; repeatable. All others have 1.
    #[arg(long, value_name = "NAMESPACE=SHARE", value_parser = namespace_share)]
    results_share: Vec<(String, u32)>,
    /// Maximum of `results.maxBytesPerNamespace`, whatever policies say. 0 = unlimited.
    #[arg(long, value_name = "BYTES", default_value = "256Mi")]
    results_max_bytes_per_namespace: Bytes,
    /// Configuration file (YAML): receivers of CloudEvents, object store. Default: none.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct PruneArgs {
    /// Label key. Jobs of a namespace with the same value are one group.
    #[arg(long, value_name = "KEY")]
    group_label: String,
    /// Namespace to prune; repeatable. Default: all except kube-system.
    #[arg(long)]
    namespace: Vec<String>,
    /// Jobs per page of a list.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Newest Jobs to keep per group, whatever their outcome.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    keep_newest: u32,
    /// Newest completed Jobs to keep per group, in addition.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
    keep_newest_succeeded: u32,
    /// Delete nothing: `client` only plans, `server` lets the apiserver check each deletion.
    #[arg(long, value_enum, default_value = "none", default_missing_value = "client", num_args = 0..=1, require_equals = true)]
    dry_run: DryRun,
    /// Also delete Jobs that a policy selected and whose result is not stored yet. Their results are lost.
    #[arg(long)]
    unharvested: bool,
}

impl SinkArgs {
    /// Runs the command until it is done, or a signal ends it.
    ///
    /// # Errors
    /// If it cannot start, or fails.
    pub async fn execute(self) -> anyhow::Result<ExitCode> {
        let command = self.resolve()?;
        let signals = ShutdownSignals::listen().context("cannot handle signals")?;
        let client = client::build(PROGRAM, VERSION).await?;
        match command {
            SinkCommand::Run(options) => run(client, *options, signals).await?,
            SinkCommand::Prune(options) => {
                return Ok(prune_until_signal(client, &options, signals).await?.exit_code());
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn resolve(self) -> Result<SinkCommand, ConfigError> {
        Ok(match self.subcommand {
            Some(SinkSubcommand::Prune(args)) => SinkCommand::Prune(args.into()),
            Some(SinkSubcommand::Run(args)) => SinkCommand::Run(Box::new(args.resolve()?)),
            None => SinkCommand::Run(Box::new(self.run.resolve()?)),
        })
    }
}

impl RunArgs {
    fn resolve(self) -> Result<RunOptions, ConfigError> {
        Ok(RunOptions {
            config: self.config.as_deref().map(Config::load).transpose()?.unwrap_or_default(),
            admin_listen: self.admin_listen,
            metrics_auth: self.metrics_auth,
            namespace: self.namespace,
            namespaces: self.namespaces,
            replica: self.replica.unwrap_or_else(|| default_replica().to_string()),
            refusal_socket: self.refusal_socket,
            results_budget: Some(self.results_max_bytes.0).filter(|bytes| *bytes > 0).map(|max_bytes| {
                ClusterBudget { max_bytes, shares: self.results_share.into_iter().collect() }
            }),
            results_max_bytes_per_namespace: Some(self.results_max_bytes_per_namespace.0)
                .filter(|bytes| *bytes > 0),
        })
    }
}

fn namespace_share(text: &str) -> Result<(String, u32), String> {
    let parsed = text.split_once('=').and_then(|(namespace, share)| Some((namespace, share.parse().ok()?)));
    match parsed {
        Some((namespace, share)) if share > 0 && !namespace.is_empty() => Ok((namespace.to_owned(), share)),
        _ => Err("expected NAMESPACE=SHARE with a share of at least 1, such as ci=4".to_owned()),
    }
}

impl From<PruneArgs> for PruneOptions {
    fn from(args: PruneArgs) -> Self {
        Self {
            group_label: args.group_label,
            namespaces: args.namespace,
            page: args.limit,
            keep: Keep { newest: args.keep_newest, newest_succeeded: args.keep_newest_succeeded },
            dry_run: args.dry_run,
            unharvested: args.unharvested,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_of_namespaces() {
        let line = ["sink", "--results-share", "ci=4", "--results-share=web=2", "--results-max-bytes=1Mi"];
        let Ok(SinkCommand::Run(options)) = SinkArgs::parse_from(line).resolve() else { panic!("not run") };
        let shares = [("ci".to_owned(), 4), ("web".to_owned(), 2)].into();
        assert_eq!(options.results_budget, Some(ClusterBudget { max_bytes: 1 << 20, shares }));
        assert_eq!(options.results_max_bytes_per_namespace, Some(256 << 20));
        for wrong in ["ci", "ci=", "ci=0", "=1", "ci=-1", "ci=x"] {
            let error = SinkArgs::try_parse_from(["sink", "--results-share", wrong]).unwrap_err().to_string();
            assert!(error.contains("NAMESPACE=SHARE"), "{wrong}: {error}");
        }
    }
}
