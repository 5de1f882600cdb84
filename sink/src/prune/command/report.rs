//! The line per Job, and the counts.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use job_handler_shared::{job::snapshot::JobSnapshot, text::escape_unsafe};

use crate::prune::command::{
    delete::DeletionOutcome,
    options::{DryRun, PruneOptions},
};

/// Counts of a run of the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// (namespace, group) pairs.
    pub groups: usize,
    /// Jobs deleted, or that would be without the dry run.
    pub purged: usize,
    /// Jobs that stay.
    pub skipped: usize,
    /// Deletions that failed.
    pub failed: usize,
    /// Groups with a retained Job that was deleted meanwhile; the command deletes no more Jobs of them.
    pub vanished: usize,
}

impl PruneReport {
    /// The program's exit code: 1 if a deletion failed.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Writes the lines and counts them.
pub(super) struct ReportWriter<'a, W> {
    pub(super) options: &'a PruneOptions,
    pub(super) out: &'a mut W,
    pub(super) report: PruneReport,
}

impl<W: Write> ReportWriter<'_, W> {
    pub(super) fn write(
        &mut self,
        value: &str,
        job: &JobSnapshot,
        outcome: DeletionOutcome,
    ) -> io::Result<()> {
        match outcome {
            DeletionOutcome::Deleted(remark) => {
                self.report.purged += 1;
                let dry = match self.options.dry_run {
                    DryRun::None => "",
                    DryRun::Client => " (dry run)",
                    DryRun::Server => " (server dry run)",
                };
                self.line("PURGE", job, value, &format_args!("SUCCESS{remark}{dry}"))
            }
            DeletionOutcome::Kept(why) => self.skip(job, value, &why),
            DeletionOutcome::Failed(why) => {
                self.report.failed += 1;
                self.line("PURGE", job, value, &format_args!("FAILED: {why}"))
            }
        }
    }

    pub(super) fn skip(&mut self, job: &JobSnapshot, value: &str, why: &dyn fmt::Display) -> io::Result<()> {
        self.report.skipped += 1;
        self.line("SKIP", job, value, why)
    }

    /// Writes the closing line.
    pub(super) fn close(self) -> io::Result<PruneReport> {
        let report = self.report;
        let dry = if self.options.dry_run == DryRun::None { "" } else { " (dry run: nothing was deleted)" };
        let vanished = match report.vanished {
            0 => String::new(),
            n => format!(", {n} groups changed meanwhile: run the command again"),
        };
        writeln!(
            self.out,
            "Found {} (namespace, group) pairs: {} purged, {} skipped, {} failed{vanished}{dry}",
            report.groups, report.purged, report.skipped, report.failed
        )?;
        Ok(report)
    }

    fn line(&mut self, word: &str, job: &JobSnapshot, value: &str, why: &dyn fmt::Display) -> io::Result<()> {
        let PruneOptions { group_label, .. } = self.options;
        let line = format!(
            "{word:<5} {}/{}  {group_label}={value}  {}  {why}",
            job.namespace, job.name, job.created
        );
        writeln!(self.out, "{}", escape_unsafe(&line))
    }
}
