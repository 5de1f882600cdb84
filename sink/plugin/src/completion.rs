//! What could come next on the command line, in the form that kubectl asks its plugins for
//! (`k8s.io/kubectl/pkg/cmd/plugin/plugin_completion.go`): a candidate per line, a tab before its description, and last
//! a directive of Cobra's.

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
    cli::{Access, Cli},
    client, lookup,
    source::{Source, Stored},
};

/// Cobra's `ShellCompDirectiveNoFileComp`.
const NO_FILES: u8 = 4;
/// Cobra's `ShellCompDirectiveDefault`: files.
const FILES: u8 = 0;
/// Nobody waits longer for a completion.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is to be completed.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Subcommand,
    Flag,
    /// The value of this argument; its id.
    Value(String),
    Nothing,
}

/// The command line so far.
struct Line {
    command: Command,
    /// Values of arguments, by id.
    values: BTreeMap<String, String>,
    wanted: Wanted,
    prefix: String,
    /// What stands before the value in the same word, as in `--output=`.
    before: String,
}

/// Prints the candidates for the last of `words`.
///
/// # Errors
/// Where `out` takes no more. A cluster that does not answer has no candidates.
pub async fn print(words: &[String], out: &mut impl Write) -> io::Result<()> {
    let line = parse(words);
    let (candidates, directive) = candidates(&line).await;
    for (candidate, about) in candidates {
        if candidate.starts_with(&line.prefix) {
            let about = if about.is_empty() { String::new() } else { format!("\t{about}") };
            writeln!(out, "{}{candidate}{about}", line.before)?;
        }
    }
    writeln!(out, ":{directive}")
}

fn parse(words: &[String]) -> Line {
    let mut root = Cli::command();
    // Global arguments are known to subcommands only then.
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
    let (mut prefix, mut before) = (last.clone(), String::new());
    let wanted = if let Some(id) = pending {
        Wanted::Value(id)
    } else if last.starts_with('-') {
        match last.split_once('=') {
            Some((flag, value)) => match argument(&command, flag) {
                Some(argument) => {
                    (prefix, before) = (value.to_owned(), format!("{flag}="));
                    Wanted::Value(argument.get_id().to_string())
                }
                None => Wanted::Nothing,
            },
            None => Wanted::Flag,
        }
    } else if !in_command {
        Wanted::Subcommand
    } else {
        command
            .get_positionals()
            .nth(positionals)
            .map_or(Wanted::Nothing, |a| Wanted::Value(a.get_id().to_string()))
    };
    Line { command, values, wanted, prefix, before }
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

async fn candidates(line: &Line) -> (Vec<(String, String)>, u8) {
    let about = |text: Option<&clap::builder::StyledStr>| {
        text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
    };
    match &line.wanted {
        Wanted::Nothing => (Vec::new(), NO_FILES),
        Wanted::Subcommand => {
            let shown = line.command.get_subcommands().filter(|sub| !sub.is_hide_set());
            (shown.map(|sub| (sub.get_name().to_owned(), about(sub.get_about()))).collect(), NO_FILES)
        }
        Wanted::Flag => {
            let mut flags = Vec::new();
            for argument in line.command.get_arguments().filter(|a| !a.is_positional() && !a.is_hide_set()) {
                let text = about(argument.get_help());
                flags.extend(argument.get_long().map(|long| (format!("--{long}"), text.clone())));
                flags.extend(argument.get_short().map(|short| (format!("-{short}"), text)));
            }
            (flags, NO_FILES)
        }
        Wanted::Value(id) => {
            let known = line.command.get_arguments().find(|argument| argument.get_id() == id.as_str());
            let possible = known.map(Arg::get_possible_values).unwrap_or_default();
            if !possible.is_empty() {
                let shown = possible.iter().filter(|value| !value.is_hide_set());
                return (shown.map(|v| (v.get_name().to_owned(), about(v.get_help()))).collect(), NO_FILES);
            }
            if id == "kubeconfig" {
                return (Vec::new(), FILES);
            }
            let asked = tokio::time::timeout(PATIENCE, from_cluster(id, &line.values)).await;
            (asked.ok().flatten().unwrap_or_default(), NO_FILES)
        }
    }
}

/// Candidates that only the cluster, or the kubeconfig, knows.
async fn from_cluster(id: &str, values: &BTreeMap<String, String>) -> Option<Vec<(String, String)>> {
    let value = |id: &str| values.get(id).cloned();
    let access = Access {
        namespace: value("namespace"),
        kubeconfig: value("kubeconfig").map(Into::into),
        context: value("context"),
        cluster: value("cluster"),
        user: value("user"),
        impersonate: value("impersonate"),
        ..Access::default()
    };
    if id == "context" {
        let contexts = client::contexts(access.kubeconfig.as_deref());
        return Some(contexts.into_iter().map(|name| (name, String::new())).collect());
    }
    let source = client::connect(&access, false).await.ok()?;
    match id {
        "namespace" => {
            let api = Api::<Namespace>::all(source.client.clone());
            let all = api.list_metadata(&ListParams::default()).await.ok()?;
            Some(all.items.iter().map(|namespace| (namespace.name_any(), String::new())).collect())
        }
        "job" => Some(jobs(&source).await),
        "container" | "pod" | "run" => of_job(&source, id, &value("job")?).await,
        "group" => Some(groups(&source).await),
        _ => None,
    }
}

async fn jobs(source: &Source) -> Vec<(String, String)> {
    let now = jiff::Timestamp::now();
    let mut found = BTreeMap::new();
    let each = &mut |object| {
        if let Ok(Stored { manifest, .. }) = Stored::read(object) {
            let ago = human_seconds(now.duration_since(manifest.job.finished).as_secs());
            found.insert(manifest.job.name, format!("{} {ago} ago", manifest.outcome.as_str()));
        }
    };
    // What was found before it failed is better than nothing.
    let _ = source.each("", each).await;
    found.into_iter().collect()
}

async fn groups(source: &Source) -> Vec<(String, String)> {
    let mut found = BTreeSet::new();
    let each = &mut |object| {
        if let Ok(Stored { manifest, .. }) = Stored::read(object) {
            found.extend(manifest.job.group);
        }
    };
    let _ = source.each("", each).await;
    found.into_iter().map(|group| (group, String::new())).collect()
}

async fn of_job(source: &Source, id: &str, job: &str) -> Option<Vec<(String, String)>> {
    let (stored, others) = lookup::result_of(source, job, None, &mut io::sink()).await.ok()?;
    let pods = &stored.manifest.pods;
    let names: BTreeSet<String> = match id {
        "pod" => pods.iter().map(|pod| pod.name.clone()).collect(),
        "container" => pods.iter().flat_map(|pod| &pod.containers).map(|c| c.name.clone()).collect(),
        _ => std::iter::once(&stored).chain(&others).map(|run| run.manifest.job.uid.clone()).collect(),
    };
    Some(names.into_iter().map(|name| (name, String::new())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(words: &[&str]) -> (Wanted, String) {
        let line = parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        (line.wanted, line.prefix)
    }

    #[test]
    fn knows_what_is_being_typed() {
        let value = |id: &str| Wanted::Value(id.to_owned());
        for (words, expected, prefix) in [
            (&[""][..], Wanted::Subcommand, ""),
            (&["sh"], Wanted::Subcommand, "sh"),
            (&["-n", "ci", "lo"], Wanted::Subcommand, "lo"),
            (&["-n", ""], value("namespace"), ""),
            (&["logs", ""], value("job"), ""),
            (&["logs", "-n", "ci", "bu"], value("job"), "bu"),
            (&["logs", "build-1", "-c", "ma"], value("container"), "ma"),
            (&["logs", "build-1", ""], Wanted::Nothing, ""),
            (&["logs", "build-1", "--p"], Wanted::Flag, "--p"),
            (&["list", "--output=js"], value("output"), "js"),
            (&["list", "-A", ""], Wanted::Nothing, ""),
            (&["completion", ""], value("shell"), ""),
        ] {
            assert_eq!(wanted(words), (expected, prefix.to_owned()), "{words:?}");
        }
    }

    #[tokio::test]
    async fn answers_as_cobra_does() {
        let answer = async |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let mut out = Vec::new();
            print(&words, &mut out).await.unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(answer(&["l"]).await.starts_with("list\tLists results"));
        assert!(answer(&["l"]).await.ends_with(":4\n"));
        assert_eq!(answer(&["list", "-o", "y"]).await, "yaml\tAll facts\n:4\n");
        assert_eq!(answer(&["list", "--output=na"]).await.split('\t').next(), Some("--output=name"));
        assert_eq!(answer(&["--kubeconfig", ""]).await, ":0\n");
        assert!(answer(&["logs", "a", "--"]).await.contains("--previous\t"));
        assert!(answer(&["logs", "a", "--"]).await.contains("--namespace\t"), "global ones, too");
    }
}
