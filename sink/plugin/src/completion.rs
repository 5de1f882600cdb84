//! Completion candidates in the format that kubectl expects of plugins
//! (`k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go`): one candidate per line, a tab before its description, and a Cobra
//! directive as the last line.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    time::Duration,
};

use clap::{Arg, Command, CommandFactory};
use job_handler_shared::text::human_seconds;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt, api::ListParams};

use crate::{
    cli::{ClusterArgs, PluginCli},
    client, lookup,
    result_source::{JobResult, ResultSource},
};

/// Cobra's `ShellCompDirectiveNoFileComp`.
const NO_FILES: u8 = 4;
/// Cobra's `ShellCompDirectiveDefault`: the shell completes file names.
const FILES: u8 = 0;
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(3);

/// What the last word is the start of.
#[derive(Debug, PartialEq, Eq)]
enum CompletionSubject {
    Subcommand,
    Flag,
    /// A value of the argument with this id.
    Value(String),
    Nothing,
}

struct PartialCommandLine {
    command: Command,
    /// Values of arguments, by id.
    values: BTreeMap<String, String>,
    subject: CompletionSubject,
    prefix: String,
    /// The part of the last word before the value, such as `--output=`.
    flag_part: String,
}

/// Prints the candidates for the last of `words`. If the cluster does not respond in time, it has no candidates.
pub(crate) async fn print_candidates(words: &[String], out: &mut impl Write) -> io::Result<()> {
    let line = parse(words);
    let (candidates, directive) = candidates(&line).await;
    for (candidate, help) in candidates {
        if candidate.starts_with(&line.prefix) {
            let help = if help.is_empty() { String::new() } else { format!("\t{help}") };
            writeln!(out, "{}{candidate}{help}", line.flag_part)?;
        }
    }
    writeln!(out, ":{directive}")
}

fn parse(words: &[String]) -> PartialCommandLine {
    let mut root = PluginCli::command();
    // Propagates global arguments to subcommands.
    root.build();
    let (last, words) =
        words.split_last().map_or((String::new(), words), |(last, rest)| (last.clone(), rest));
    let mut command = root;
    let mut values = BTreeMap::new();
    let mut positionals = 0;
    let mut pending: Option<String> = None;
    let mut in_command = false;
    for word in words {
        if let Some(id) = pending.take() {
            values.insert(id, word.clone());
        } else if word.starts_with('-') && word.len() > 1 {
            let (flag, value) = word.split_once('=').map_or((word.as_str(), None), |(f, v)| (f, Some(v)));
            if let Some(argument) = argument(&command, flag).filter(|argument| takes_value(argument)) {
                match value {
                    Some(value) => drop(values.insert(argument.get_id().to_string(), value.to_owned())),
                    None => pending = Some(argument.get_id().to_string()),
                }
            }
        } else if !in_command && let Some(sub) = command.find_subcommand(word) {
            (command, in_command) = (sub.clone(), true);
        } else {
            positionals += 1;
            if let Some(argument) = command.get_positionals().nth(positionals - 1) {
                values.insert(argument.get_id().to_string(), word.clone());
            }
        }
    }
    let (mut prefix, mut flag_part) = (last.clone(), String::new());
    let subject = if let Some(id) = pending {
        CompletionSubject::Value(id)
    } else if last.starts_with('-') {
        match last.split_once('=') {
            Some((flag, value)) => match argument(&command, flag) {
                Some(argument) => {
                    (prefix, flag_part) = (value.to_owned(), format!("{flag}="));
                    CompletionSubject::Value(argument.get_id().to_string())
                }
                None => CompletionSubject::Nothing,
            },
            None => CompletionSubject::Flag,
        }
    } else if !in_command {
        CompletionSubject::Subcommand
    } else {
        command
            .get_positionals()
            .nth(positionals)
            .map_or(CompletionSubject::Nothing, |a| CompletionSubject::Value(a.get_id().to_string()))
    };
    PartialCommandLine { command, values, subject, prefix, flag_part }
}

fn argument<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let long = flag.strip_prefix("--");
    let short = flag.strip_prefix('-').and_then(|rest| rest.chars().next()).filter(|_| long.is_none());
    command.get_arguments().find(|argument| match long {
        Some(long) => argument.get_long() == Some(long),
        None => short.is_some() && argument.get_short() == short,
    })
}

fn takes_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
}

async fn candidates(line: &PartialCommandLine) -> (Vec<(String, String)>, u8) {
    let first_line = |text: Option<&clap::builder::StyledStr>| {
        text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
    };
    match &line.subject {
        CompletionSubject::Nothing => (Vec::new(), NO_FILES),
        CompletionSubject::Subcommand => {
            let shown = line.command.get_subcommands().filter(|sub| !sub.is_hide_set());
            (shown.map(|sub| (sub.get_name().to_owned(), first_line(sub.get_about()))).collect(), NO_FILES)
        }
        CompletionSubject::Flag => {
            let mut flags = Vec::new();
            for argument in line.command.get_arguments().filter(|a| !a.is_positional() && !a.is_hide_set()) {
                let text = first_line(argument.get_help());
                flags.extend(argument.get_long().map(|long| (format!("--{long}"), text.clone())));
                flags.extend(argument.get_short().map(|short| (format!("-{short}"), text)));
            }
            (flags, NO_FILES)
        }
        CompletionSubject::Value(id) => {
            let argument = line.command.get_arguments().find(|argument| argument.get_id() == id.as_str());
            let possible = argument.map(Arg::get_possible_values).unwrap_or_default();
            if !possible.is_empty() {
                let shown = possible.iter().filter(|value| !value.is_hide_set());
                return (
                    shown.map(|v| (v.get_name().to_owned(), first_line(v.get_help()))).collect(),
                    NO_FILES,
                );
            }
            if id == "kubeconfig" {
                return (Vec::new(), FILES);
            }
            let found = tokio::time::timeout(CLUSTER_TIMEOUT, from_cluster(id, &line.values)).await;
            (found.ok().flatten().unwrap_or_default(), NO_FILES)
        }
    }
}

/// Candidates from the cluster or the kubeconfig.
async fn from_cluster(id: &str, values: &BTreeMap<String, String>) -> Option<Vec<(String, String)>> {
    let value = |id: &str| values.get(id).cloned();
    let cluster = ClusterArgs {
        namespace: value("namespace"),
        kubeconfig: value("kubeconfig").map(Into::into),
        context: value("context"),
        cluster: value("cluster"),
        user: value("user"),
        impersonate: value("impersonate"),
        ..ClusterArgs::default()
    };
    if id == "context" {
        let names = client::context_names(cluster.kubeconfig.as_deref());
        return Some(names.into_iter().map(|name| (name, String::new())).collect());
    }
    let source = client::connect(&cluster, false).await.ok()?;
    match id {
        "namespace" => {
            let api = Api::<Namespace>::all(source.client.clone());
            let all = api.list_metadata(&ListParams::default()).await.ok()?;
            Some(all.items.iter().map(|namespace| (namespace.name_any(), String::new())).collect())
        }
        "job" => Some(jobs(&source).await),
        "container" | "pod" | "run" => parts_of_job(&source, id, &value("job")?).await,
        "group" => Some(groups(&source).await),
        _ => None,
    }
}

async fn jobs(source: &ResultSource) -> Vec<(String, String)> {
    let now = jiff::Timestamp::now();
    let mut found = BTreeMap::new();
    let visit = &mut |object| {
        if let Ok(JobResult { manifest, .. }) = JobResult::parse(object) {
            let ago = human_seconds(now.duration_since(manifest.job.finished).as_secs());
            found.insert(manifest.job.name, format!("{} {ago} ago", manifest.outcome.as_str()));
        }
    };
    // After an error, the results listed so far are still useful candidates.
    let _ = source.for_each_result("", visit).await;
    found.into_iter().collect()
}

async fn groups(source: &ResultSource) -> Vec<(String, String)> {
    let mut found = BTreeSet::new();
    let visit = &mut |object| {
        if let Ok(JobResult { manifest, .. }) = JobResult::parse(object) {
            found.extend(manifest.job.group);
        }
    };
    let _ = source.for_each_result("", visit).await;
    found.into_iter().map(|group| (group, String::new())).collect()
}

async fn parts_of_job(source: &ResultSource, id: &str, job: &str) -> Option<Vec<(String, String)>> {
    let (result, other_runs) = lookup::find_result(source, job, None, &mut io::sink()).await.ok()?;
    let pods = &result.manifest.pods;
    let names: BTreeSet<String> = match id {
        "pod" => pods.iter().map(|pod| pod.name.clone()).collect(),
        "container" => pods.iter().flat_map(|pod| &pod.containers).map(|c| c.name.clone()).collect(),
        _ => std::iter::once(&result).chain(&other_runs).map(|run| run.manifest.job.uid.clone()).collect(),
    };
    Some(names.into_iter().map(|name| (name, String::new())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(words: &[&str]) -> (CompletionSubject, String) {
        let line = parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        (line.subject, line.prefix)
    }

    #[test]
    fn the_last_word_is_classified() {
        let value = |id: &str| CompletionSubject::Value(id.to_owned());
        for (words, expected, prefix) in [
            (&[""][..], CompletionSubject::Subcommand, ""),
            (&["sh"], CompletionSubject::Subcommand, "sh"),
            (&["-n", "ci", "lo"], CompletionSubject::Subcommand, "lo"),
            (&["-n", ""], value("namespace"), ""),
            (&["logs", ""], value("job"), ""),
            (&["logs", "-n", "ci", "bu"], value("job"), "bu"),
            (&["logs", "build-1", "-c", "ma"], value("container"), "ma"),
            (&["logs", "build-1", ""], CompletionSubject::Nothing, ""),
            (&["logs", "build-1", "--p"], CompletionSubject::Flag, "--p"),
            (&["list", "--output=js"], value("output"), "js"),
            (&["list", "-A", ""], CompletionSubject::Nothing, ""),
            (&["completion", ""], value("shell"), ""),
        ] {
            assert_eq!(subject(words), (expected, prefix.to_owned()), "{words:?}");
        }
    }

    #[tokio::test]
    async fn output_has_the_format_of_cobra() {
        let complete = async |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let mut out = Vec::new();
            print_candidates(&words, &mut out).await.unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(complete(&["l"]).await.starts_with("list\tLists results"));
        assert!(complete(&["l"]).await.ends_with(":4\n"));
        assert_eq!(complete(&["list", "-o", "y"]).await, "yaml\tFull results\n:4\n");
        assert_eq!(complete(&["list", "--output=na"]).await.split('\t').next(), Some("--output=name"));
        assert_eq!(complete(&["--kubeconfig", ""]).await, ":0\n");
        assert!(complete(&["logs", "a", "--"]).await.contains("--previous\t"));
        assert!(
            complete(&["logs", "a", "--"]).await.contains("--namespace\t"),
            "global flags are candidates too"
        );
    }
}
