//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};

/// Reads the stored results of finished Jobs: outcome, reasons, containers' states, logs.
#[derive(Debug, Parser)]
#[command(name = crate::PROGRAM, bin_name = "kubectl job-results", version)]
pub struct Cli {
    /// Which cluster, as whom.
    #[command(flatten)]
    pub access: Access,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as whom: what kubectl calls its own options.
#[derive(Clone, Debug, Default, Args)]
pub struct Access {
    /// Namespace; default: that of the kubeconfig's context.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Kubeconfig file; default: $KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// User or ServiceAccount to act as.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to act as; repeatable.
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_group: Vec<String>,
    /// Where results are looked for; by default in both.
    #[arg(long, global = true, value_enum, value_name = "KIND")]
    pub storage: Option<Storage>,
}

/// What results are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Storage {
    /// ConfigMaps only.
    ConfigMap,
    /// Secrets only.
    Secret,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists results, the newest first.
    #[command(visible_alias = "ls", alias = "get")]
    List(ListArgs),
    /// Tells one result: how the Job ended and why, its pods and containers, what could not be kept.
    #[command(alias = "describe")]
    Show(ShowArgs),
    /// Writes the stored logs of a Job: of all its containers, or of those asked for.
    #[command(alias = "log")]
    Logs(LogsArgs),
    /// Writes a completion script: for a shell, where the program is called by its own name, or for kubectl.
    #[command(after_help = "kubectl completes its plugins through a program beside them:\n  \
        kubectl job-results completion kubectl > ~/.local/bin/kubectl_complete-job_results\n  \
        chmod +x ~/.local/bin/kubectl_complete-job_results")]
    Completion {
        /// For whom.
        shell: Shell,
    },
    /// What kubectl asks for completion: the words so far, the last one being completed.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        /// The words after `kubectl job-results`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
        words: Vec<String>,
    },
}

/// `list`.
#[derive(Debug, Default, Args)]
pub struct ListArgs {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only results with these labels, such as job-handler/group=7.12 (`kubectl get configmap --show-labels`).
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Only of Jobs that ended so.
    #[arg(long, value_enum)]
    pub outcome: Option<Ending>,
    /// Only of this group.
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// table, wide, json, yaml, or name.
    #[arg(short, long, value_enum, default_value = "table", hide_possible_values = true)]
    pub output: ListOutput,
    /// What comes first: the one that finished last, the first by name, the longest, the largest.
    #[arg(long, value_enum, default_value = "finished")]
    pub sort_by: SortBy,
    /// Without the line of headings.
    #[arg(long)]
    pub no_headers: bool,
}

/// The two ends of a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ending {
    /// Condition Complete.
    Completed,
    /// Condition Failed.
    Failed,
}

/// How `list` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ListOutput {
    /// Columns.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// All facts.
    Json,
    /// All facts.
    Yaml,
    /// What they are stored in, as `configmap/NAME`.
    Name,
}

/// Order of `list`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// The newest first.
    #[default]
    Finished,
    /// By namespace and name.
    Name,
    /// The longest first.
    Duration,
    /// The largest first.
    Size,
}

/// `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The Job's name (job/NAME, and the result's own name, do too).
    pub job: String,
    /// Which run, where Jobs of this name have several results: the beginning of the Job's uid.
    #[arg(long, value_name = "UID")]
    pub run: Option<String>,
    /// As text for people, or all facts as json or yaml.
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: ShowOutput,
}

/// How `show` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShowOutput {
    /// For people.
    #[default]
    Text,
    /// All facts.
    Json,
    /// All facts.
    Yaml,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The Job's name (job/NAME, and the result's own name, do too).
    pub job: String,
    /// Only of this container.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Only of this pod.
    #[arg(long)]
    pub pod: Option<String>,
    /// The runs before the last restart; without it and with -c or --pod, the last runs.
    #[arg(short, long)]
    pub previous: bool,
    /// Byte for byte; by default, what a terminal would act on is written as \xNN.
    #[arg(long)]
    pub raw: bool,
    /// Which run, where Jobs of this name have several results: the beginning of the Job's uid.
    #[arg(long, value_name = "UID")]
    pub run: Option<String>,
}

/// For whom a completion script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// A shell, where the program is called by its own name.
    Of(clap_complete::Shell),
    /// kubectl, to be stored as `kubectl_complete-job_results`.
    Kubectl,
}

impl ValueEnum for Shell {
    fn value_variants<'a>() -> &'a [Self] {
        use clap_complete::Shell::{Bash, Elvish, Fish, PowerShell, Zsh};
        &[
            Self::Kubectl,
            Self::Of(Bash),
            Self::Of(Zsh),
            Self::Of(Fish),
            Self::Of(PowerShell),
            Self::Of(Elvish),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Kubectl => Some(PossibleValue::new("kubectl")),
            Self::Of(shell) => shell.to_possible_value(),
        }
    }
}
