//! `kubectl job-results`: reads stored results of Jobs. It never writes to the cluster, and reads only results
//! (completion also lists namespaces).
//!
//! Read [`run`] first; the command line is in `cli`.
//!
//! | module | holds |
//! | --- | --- |
//! | `cli` | the command line |
//! | `client` | the connection to the cluster |
//! | `result_source` | lists and gets results, in ConfigMaps and Secrets |
//! | `lookup` | finds the result of a Job by name |
//! | `list`, `show`, `logs` | the commands |
//! | `log_stream`, `log_selector`, `full_logs` | logs: reassembles and verifies them, selects sections, locates full logs |
//! | `terminal` | escapes what a terminal would interpret |
//! | `completion` | candidates for shell completion |

mod cli;
mod client;
mod completion;
mod error;
mod full_logs;
mod list;
mod log_selector;
mod log_stream;
mod logs;
mod lookup;
mod result_source;
mod show;
mod terminal;
#[cfg(test)]
mod test_results;

use std::io::Write;

use clap::CommandFactory;

use crate::{
    cli::{CompletionTarget, PluginCommand},
    terminal::EscapingWriter,
};

pub use crate::{cli::PluginCli, error::PluginError, result_source::ResultSource, terminal::escape_lines};

/// File name of the program. kubectl finds plugins by file name, where `_` stands for `-`.
const PROGRAM: &str = "kubectl-job_results";

/// Runs a command on the cluster of the kubeconfig. Writes results to `out`, and notes and warnings to `notes`.
///
/// # Errors
/// If the command fails; what could be read has been written to `out`.
pub async fn run(cli: PluginCli, out: &mut impl Write, notes: &mut impl Write) -> Result<(), PluginError> {
    let all_namespaces = match &cli.command {
        PluginCommand::Completion { target: CompletionTarget::Kubectl } => {
            return Ok(writeln!(out, "#!/bin/sh\nexec {PROGRAM} __complete -- \"$@\"")?);
        }
        PluginCommand::Completion { target: CompletionTarget::Shell(shell) } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut PluginCli::command(), PROGRAM, &mut script);
            return Ok(out.write_all(&script)?);
        }
        PluginCommand::Complete { words } => return Ok(completion::print_candidates(words, out).await?),
        PluginCommand::List(args) => args.all_namespaces,
        PluginCommand::Show(_) | PluginCommand::Logs(_) => false,
    };
    let source = client::connect(&cli.cluster, all_namespaces).await?;
    run_on(&source, &cli, out, notes).await
}

/// Runs `list`, `show` or `logs` on results of `source`; the other commands do nothing here.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    source: &ResultSource,
    cli: &PluginCli,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> Result<(), PluginError> {
    // Notes and warnings quote stored results and the apiserver.
    let notes = &mut EscapingWriter::new(notes);
    match &cli.command {
        PluginCommand::List(args) => list::run(source, args, out, notes).await,
        PluginCommand::Show(args) => {
            let (result, other_runs) =
                lookup::find_result(source, &args.job, args.run.as_deref(), notes).await?;
            Ok(show::print(&result, &other_runs, args.output, out)?)
        }
        PluginCommand::Logs(args) => {
            let (result, _) = lookup::find_result(source, &args.job, args.run.as_deref(), notes).await?;
            logs::run(source, &result, args, out, notes).await
        }
        PluginCommand::Completion { .. } | PluginCommand::Complete { .. } => Ok(()),
    }
}
