//! Runs the command: lists Jobs, decides page by page, deletes and reports.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use futures::StreamExt;
use job_handler_shared::{
    job::{
        group::{NoGroup, group_label_value},
        snapshot::JobSnapshot,
    },
    keys,
    kube::error::ApiError,
    process::supervisor::ShutdownSignals,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    jobs::patch,
    prune::{
        command::{
            candidate::PruneCandidate,
            delete::{self, DeletionOutcome},
            groups::{PruneGroupId, PruneGroups, RetainedCheck},
            options::{PruneError, PruneOptions},
            pages::JobPages,
            report::{PruneReport, ReportWriter},
        },
        keep::KeepReason,
    },
};

/// Concurrent deletions, or reads of Jobs that stay.
const CONCURRENCY: usize = 8;
/// Jobs to delete are gathered over this many pages, so that the Jobs that stay of most groups are read only once. Each
/// takes about 1 KiB of memory.
const BATCH_PAGES: usize = 20;
/// Pages listed ahead while Jobs are deleted. Each takes about 1 KiB of memory per Job.
const PAGES_AHEAD: usize = 10;

/// Prunes once, writes a line per Job to standard output, and stops at a signal.
///
/// # Errors
/// As [`prune`], and if a signal arrives.
pub(crate) async fn prune_until_signal(
    client: Client,
    options: &PruneOptions,
    mut signals: ShutdownSignals,
) -> Result<PruneReport, PruneError> {
    let mut out = io::stdout();
    tokio::select! {
        report = prune(client, options, &mut out) => report,
        signal = signals.next() => Err(PruneError::Interrupted(signal.to_string())),
    }
}

/// Prunes once and writes a line per Job to `out`.
///
/// # Errors
/// If Jobs cannot be listed or lines cannot be written. A deletion that fails is only counted.
pub async fn prune(
    client: Client,
    options: &PruneOptions,
    out: &mut impl Write,
) -> Result<PruneReport, PruneError> {
    options.validate()?;
    let writer = ReportWriter { options, out, report: PruneReport::default() };
    let mut run = PruneTask { client: client.clone(), options, writer, groups: PruneGroups::default() };
    if options.namespaces.is_empty() {
        run.prune_all(&Api::all(client)).await?;
    } else {
        for namespace in options.namespaces.iter().collect::<BTreeSet<_>>() {
            run.prune_all(&Api::namespaced(client.clone(), namespace)).await?;
        }
    }
    run.finish()
}

struct PruneTask<'a, W> {
    client: Client,
    options: &'a PruneOptions,
    writer: ReportWriter<'a, W>,
    groups: PruneGroups,
}

impl<W: Write> PruneTask<'_, W> {
    /// Prunes the Jobs of `api`, and lists further pages meanwhile.
    async fn prune_all(&mut self, api: &Api<Job>) -> Result<(), PruneError> {
        let (sender, pages) = mpsc::channel(PAGES_AHEAD);
        let mut list = JobPages::new(api, &self.options.group_label, self.options.page);
        let listing = async move {
            while let Some(page) = list.next().await.transpose() {
                let last = page.is_err();
                if sender.send(page).await.is_err() || last {
                    return;
                }
            }
        };
        let ((), pruned) = futures::future::join(Box::pin(listing), Box::pin(self.prune_pages(pages))).await;
        pruned
    }

    async fn prune_pages(
        &mut self,
        mut pages: mpsc::Receiver<Result<Vec<JobSnapshot>, ApiError>>,
    ) -> Result<(), PruneError> {
        let (mut batch, mut listed) = (Vec::new(), Ok(()));
        while let Some(page) = pages.recv().await {
            match page {
                Ok(jobs) => jobs.into_iter().try_for_each(|job| self.offer(job, &mut batch))?,
                // The decisions about the pages before stay right.
                Err(error) => listed = Err(error),
            }
            if batch.len() >= BATCH_PAGES * self.options.page as usize {
                self.purge(std::mem::take(&mut batch)).await?;
            }
        }
        self.purge(batch).await?;
        Ok(listed?)
    }

    /// Adds a Job to its group; the Jobs that no longer stay because of it are added to `batch`.
    fn offer(
        &mut self,
        job: JobSnapshot,
        batch: &mut Vec<(PruneGroupId, PruneCandidate)>,
    ) -> Result<(), PruneError> {
        let all = self.options.namespaces.is_empty();
        if all && keys::EXCLUDED_NAMESPACES.contains(&job.namespace.as_str()) {
            return Ok(());
        }
        let value = match group_label_value(&job.labels, &self.options.group_label) {
            Ok(value) => value.to_owned(),
            Err(NoGroup::MissingLabel(_)) => return Ok(()),
            Err(invalid) => return Ok(self.writer.skip(&job, "", &invalid)?),
        };
        if job.deleting_since.is_some() {
            return Ok(self.writer.skip(&job, &value, &KeepReason::Deleting)?);
        }
        let id = (job.namespace.clone(), value);
        let out = self.groups.offer(&id, job, self.options.keep);
        batch.extend(out.into_iter().map(|candidate| (id.clone(), candidate)));
        Ok(())
    }

    /// Deletes Jobs, a few at a time; writes their lines in the given order.
    async fn purge(&mut self, batch: Vec<(PruneGroupId, PruneCandidate)>) -> Result<(), PruneError> {
        let mut planned = Vec::new();
        let mut ids = BTreeSet::new();
        for (id, candidate) in batch {
            let why = candidate.keep_reason(self.options.unharvested);
            if why.is_none() {
                ids.insert(id.clone());
            }
            planned.push((id, candidate, why));
        }
        self.verify_retained(ids).await;
        let (client, options) = (self.client.clone(), self.options);
        let permits = Semaphore::new(CONCURRENCY);
        let groups = &self.groups;
        let mut outcomes = futures::stream::iter(planned)
            .map(|(id, candidate, why)| {
                let check = groups.check_of(&id);
                let (client, permits) = (client.clone(), &permits);
                async move {
                    // The semaphore is never closed, so there is no error.
                    let _permit = permits.acquire().await;
                    let job = candidate.job.clone();
                    let outcome = match (why, check) {
                        (Some(why), _) => DeletionOutcome::Kept(why),
                        (None, RetainedCheck::Deleted(name)) => DeletionOutcome::Kept(format!(
                            "{name}, which was to stay, was deleted meanwhile: run the command again"
                        )),
                        (None, RetainedCheck::Unknown(why)) => DeletionOutcome::Failed(why),
                        (None, RetainedCheck::Present) => {
                            delete::delete(&client, options, candidate, &id.1).await
                        }
                    };
                    (id.1, job, outcome)
                }
            })
            // Lines are written in order; others continue behind a slow deletion.
            .buffered(4 * CONCURRENCY);
        while let Some((value, job, outcome)) = outcomes.next().await {
            self.writer.write(&value, &job, outcome)?;
        }
        Ok(())
    }

    /// Reads the Jobs that stay of these groups: nothing is deleted of a group unless they exist.
    async fn verify_retained(&mut self, ids: BTreeSet<PruneGroupId>) {
        let unverified = self.groups.unverified(ids);
        let reads = unverified.into_iter().map(|(id, jobs)| {
            let client = self.client.clone();
            async move { (id, check_exist(&client, jobs).await) }
        });
        let checks: Vec<_> = futures::stream::iter(reads).buffer_unordered(CONCURRENCY).collect().await;
        for (id, check) in checks {
            if let RetainedCheck::Deleted(name) = &check {
                let (namespace, value) = &id;
                tracing::warn!(
                    "group {value} of namespace {namespace} has changed: {name}, which was to stay, was deleted; \
                     nothing more of the group is deleted, run the command again"
                );
                self.writer.report.vanished += 1;
            }
            self.groups.set_check(&id, check);
        }
    }

    /// Writes the lines of the Jobs that stay, which are known only at the end, and the closing line.
    fn finish(mut self) -> Result<PruneReport, PruneError> {
        self.writer.report.groups = self.groups.len();
        for (value, job, why) in self.groups.into_retained(self.options.keep) {
            self.writer.skip(&job, &value, &why)?;
        }
        Ok(self.writer.close()?)
    }
}

async fn check_exist(client: &Client, jobs: Vec<JobSnapshot>) -> RetainedCheck {
    for job in jobs {
        match patch::get_current(client, &job).await {
            Ok(Some(now)) if now.deleting_since.is_none() => {}
            Ok(_) => return RetainedCheck::Deleted(job.name),
            Err(error) => return RetainedCheck::Unknown(error.to_string()),
        }
    }
    RetainedCheck::Present
}
