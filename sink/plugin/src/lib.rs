//! `kubectl job-results`: stored results for people. Reads, never writes, and asks for nothing but results.
//!
//! | module | holds |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`client`] | which cluster, as whom |
//! | [`source`] | results as they are stored, and where |
//! | [`lookup`] | lists them, finds that of a Job |
//! | [`content`], [`select`], [`sanitize`] | logs: put together and checked, the part asked for, fit for a terminal |
//! | [`list`], [`show`] | what is printed |
//! | [`completion`] | what could come next on the command line |

pub mod cli;
pub mod client;
pub mod completion;
pub mod content;
pub mod list;
pub mod lookup;
pub mod sanitize;
pub mod select;
pub mod show;
pub mod source;
mod verify;

use std::io::{self, Write};

use clap::CommandFactory;

use self::{
    cli::{Cli, Command, LogsArgs, Shell},
    sanitize::Escaper,
    source::{Source, Stored},
};
use job_handler_shared::kube::error::ApiError;

/// The program's file name: kubectl finds plugins by it, and writes `_` as `-`.
pub const PROGRAM: &str = "kubectl-job_results";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No cluster, or no way into it.
    #[error("{0}")]
    Access(String),
    /// A call that the role does not allow.
    #[error(
        "no right to {what}: {message}\n`get` and `list` of {kind}s in the namespace are what this needs"
    )]
    Rights {
        /// What was tried.
        what: String,
        /// The apiserver's words.
        message: String,
        /// What results are stored in.
        kind: &'static str,
    },
    /// A call failed.
    #[error(transparent)]
    Api(ApiError),
    /// There is none; the text says what there is.
    #[error("{0}")]
    NotFound(String),
    /// An object that is labelled as a result, and is none that can be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is not what it says it is; what there is was written nevertheless.
    #[error("{}", .0.join("\nerror: "))]
    Damaged(Vec<String>),
    /// Nobody reads what we write.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Does what the command line says; answers go to `out`, remarks to `remarks`.
///
/// # Errors
/// Where there is no (whole) answer.
pub async fn run(cli: Cli, out: &mut impl Write, remarks: &mut impl Write) -> Result<(), ReadError> {
    let all = match &cli.command {
        Command::Completion { shell: Shell::Kubectl } => {
            return Ok(writeln!(out, "#!/bin/sh\nexec {PROGRAM} __complete -- \"$@\"")?);
        }
        Command::Completion { shell: Shell::Of(shell) } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), PROGRAM, &mut script);
            return Ok(out.write_all(&script)?);
        }
        Command::Complete { words } => return Ok(completion::print(words, out).await?),
        Command::List(args) => args.all_namespaces,
        Command::Show(_) | Command::Logs(_) => false,
    };
    let source = client::connect(&cli.access, all).await?;
    answer(&source, &cli.command, out, remarks).await
}

/// Answers what is asked of a cluster.
///
/// # Errors
/// Where there is no (whole) answer.
pub async fn answer(
    source: &Source,
    command: &Command,
    out: &mut impl Write,
    remarks: &mut impl Write,
) -> Result<(), ReadError> {
    match command {
        Command::List(args) => list::run(source, args, out, remarks).await,
        Command::Show(args) => {
            let (found, others) = lookup::result_of(source, &args.job, args.run.as_deref(), remarks).await?;
            Ok(show::print(&found, &others, args.output, out)?)
        }
        Command::Logs(args) => {
            let (found, _) = lookup::result_of(source, &args.job, args.run.as_deref(), remarks).await?;
            logs(source, &found, args, out, remarks).await
        }
        Command::Completion { .. } | Command::Complete { .. } => Ok(()),
    }
}

async fn logs(
    source: &Source,
    found: &Stored,
    args: &LogsArgs,
    out: &mut impl Write,
    remarks: &mut impl Write,
) -> Result<(), ReadError> {
    let wanted = select::Wanted {
        container: args.container.as_deref(),
        pod: args.pod.as_deref(),
        previous: args.previous,
    };
    verify::remark(found, wanted, remarks)?;
    let mut pick = select::Picker::new(found, wanted)?;
    let mut escaper = (!args.raw).then(Escaper::default);
    let mut buffer = Vec::new();
    let faults = {
        let mut sink = |piece: &[u8]| -> io::Result<()> {
            let part = pick.push(piece);
            match &mut escaper {
                Some(escaper) => {
                    buffer.clear();
                    escaper.push(&part, &mut buffer);
                    out.write_all(&buffer)
                }
                None => out.write_all(&part),
            }
        };
        content::stream(source, found, &mut sink).await?
    };
    if let Some(escaper) = &mut escaper {
        buffer.clear();
        escaper.finish(&mut buffer);
        out.write_all(&buffer)?;
    }
    out.flush()?;
    if faults.is_empty() { Ok(()) } else { Err(ReadError::Damaged(faults)) }
}
