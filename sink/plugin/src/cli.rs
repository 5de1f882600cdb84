//! The command line. Doc comments here are the help texts.

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use job_handler_shared::result::storage_kind::StorageKind;

/// Reads stored results of finished Jobs: outcome, reason, container states and logs.
#[derive(Debug, Parser)]
#[command(name = crate::PROGRAM, bin_name = "kubectl job-results", version)]
pub struct PluginCli {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
}

// Named as kubectl names its options.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClusterArgs {
    /// Namespace; default: the namespace of the kubeconfig's context.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Kubeconfig file; default: $KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// User or ServiceAccount to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub(crate) impersonate: Option<String>,
    /// Group to impersonate; repeatable.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub(crate) impersonate_group: Vec<String>,
    /// Read results from objects of this kind only; default: both kinds.
    #[arg(long, global = true, value_enum, value_name = "KIND")]
    pub(crate) storage: Option<StorageFilter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub(crate) enum StorageFilter {
    /// ConfigMaps only.
    ConfigMap,
    /// Secrets only.
    Secret,
}

impl From<StorageFilter> for StorageKind {
    fn from(filter: StorageFilter) -> Self {
        match filter {
            StorageFilter::ConfigMap => Self::ConfigMap,
            StorageFilter::Secret => Self::Secret,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Lists results, newest first.
    #[command(visible_alias = "ls", alias = "get")]
    List(ListArgs),
    /// Shows one result: how the Job ended and why, its pods and containers, and which parts are missing.
    #[command(alias = "describe")]
    Show(ShowArgs),
    /// Prints the stored logs of a Job, of all containers or of selected ones.
    #[command(alias = "log")]
    Logs(LogsArgs),
    /// Prints a completion script, for kubectl or for a shell that calls the program by its own name.
    #[command(after_help = "kubectl runs the completion program of a plugin, which must be on the PATH:\n  \
        kubectl job-results completion kubectl > ~/.local/bin/kubectl_complete-job_results\n  \
        chmod +x ~/.local/bin/kubectl_complete-job_results")]
    Completion {
        /// kubectl, or a shell.
        #[arg(id = "shell", value_name = "SHELL")]
        target: CompletionTarget,
    },
    /// Prints completion candidates for the last word.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words after `kubectl job-results`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
        words: Vec<String>,
    },
}

#[derive(Debug, Default, Args)]
pub(crate) struct ListArgs {
    /// List results in all namespaces.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Label selector for results, such as job-handler/group=7.12 (`kubectl get configmap --show-labels`).
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Filter by outcome.
    #[arg(long, value_enum)]
    pub(crate) outcome: Option<OutcomeFilter>,
    /// Filter by group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Output format: table, wide, json, yaml, or name.
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub(crate) output: ListOutput,
    /// Order of the results.
    #[arg(long, value_enum, default_value = "finished")]
    pub(crate) sort_by: SortBy,
    /// Omit the header row.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutcomeFilter {
    /// Jobs with condition Complete.
    Completed,
    /// Jobs with condition Failed.
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListOutput {
    /// The main columns.
    #[default]
    Table,
    /// All columns.
    Wide,
    /// Full results.
    Json,
    /// Full results.
    Yaml,
    /// The objects that hold the results, as `configmap/NAME`.
    Name,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// Newest first.
    #[default]
    Finished,
    /// By namespace and name.
    Name,
    /// Longest first.
    Duration,
    /// Largest first.
    Size,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Name of the Job, also as job/NAME, or name of the object that holds the result.
    pub(crate) job: String,
    /// First characters of the uid of the Job, to select one of several Jobs of this name; default: the newest.
    #[arg(long, value_name = "UID")]
    pub(crate) run: Option<String>,
    /// Output format: readable text, or the full result as json or yaml.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: ShowOutput,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShowOutput {
    /// Readable text.
    #[default]
    Text,
    /// The full result.
    Json,
    /// The full result.
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the Job, also as job/NAME, or name of the object that holds the result.
    pub(crate) job: String,
    /// Filter by container.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Filter by pod.
    #[arg(long)]
    pub(crate) pod: Option<String>,
    /// Logs from before the last restart. With -c or --pod and without this: logs of the last run.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Print the logs byte for byte; by default, bytes that a terminal would interpret are printed as \xNN.
    #[arg(long)]
    pub(crate) raw: bool,
    /// First characters of the uid of the Job, to select one of several Jobs of this name; default: the newest.
    #[arg(long, value_name = "UID")]
    pub(crate) run: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompletionTarget {
    /// A shell that calls the program by its own name.
    Shell(clap_complete::Shell),
    /// kubectl; the script is stored as `kubectl_complete-job_results`.
    Kubectl,
}

impl ValueEnum for CompletionTarget {
    fn value_variants<'a>() -> &'a [Self] {
        use clap_complete::Shell::{Bash, Elvish, Fish, PowerShell, Zsh};
        &[
            Self::Kubectl,
            Self::Shell(Bash),
            Self::Shell(Zsh),
            Self::Shell(Fish),
            Self::Shell(PowerShell),
            Self::Shell(Elvish),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Kubectl => Some(PossibleValue::new("kubectl")),
            Self::Shell(shell) => shell.to_possible_value(),
        }
    }
}
