//! Deletes one Job, if it is still the version that the decision was made on.

use job_handler_shared::{job::group::group_label_value, policy::cleanup::Propagation};
use kube::Client;

use crate::{
    jobs::patch::{self, Written},
    prune::command::{
        candidate::PruneCandidate,
        options::{DryRun, PruneOptions},
        pages::{MAX_ATTEMPTS, is_retryable, pause},
    },
};

/// Most reads of a Job that changes again and again.
const MAX_READS: u32 = 3;
const ALREADY_DELETED: DeletionOutcome = DeletionOutcome::Deleted(": already deleted");

/// The outcome for a Job that does not stay as one of the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeletionOutcome {
    /// It is deleted, or would be; with a remark for the report, or "".
    Deleted(&'static str),
    /// It stays, with the reason.
    Kept(String),
    /// The deletion failed, with the reason.
    Failed(String),
}

/// Deletes a Job. If it has changed, reads it again and decides again.
pub(super) async fn delete(
    client: &Client,
    options: &PruneOptions,
    mut candidate: PruneCandidate,
    group: &str,
) -> DeletionOutcome {
    if options.dry_run == DryRun::Client {
        return DeletionOutcome::Deleted("");
    }
    let dry_run = options.dry_run == DryRun::Server;
    let (mut reads, mut attempt) = (0, 0);
    loop {
        attempt += 1;
        match patch::delete(client, &candidate.job, Propagation::Foreground, dry_run).await {
            Ok(Written::Done(_)) => return DeletionOutcome::Deleted(""),
            Ok(Written::Gone) => return ALREADY_DELETED,
            Ok(Written::Changed) if reads < MAX_READS => {}
            Ok(Written::Changed) => {
                return DeletionOutcome::Failed("the Job keeps changing: run the command again".to_owned());
            }
            Err(error) if is_retryable(&error) && attempt < MAX_ATTEMPTS => {
                tracing::warn!("{error}; retrying");
                pause(attempt).await;
                continue;
            }
            Err(error) => return DeletionOutcome::Failed(error.to_string()),
        }
        reads += 1;
        match patch::get_current(client, &candidate.job).await {
            // Another Job may have the name by now; it is not the one to delete.
            Ok(None) => return ALREADY_DELETED,
            Ok(Some(now)) => {
                if group_label_value(&now.labels, &options.group_label).ok() != Some(group) {
                    return DeletionOutcome::Kept("its group label has changed".to_owned());
                }
                candidate = PruneCandidate::from(now);
                if let Some(why) = candidate.keep_reason(options.unharvested) {
                    return DeletionOutcome::Kept(why);
                }
            }
            Err(error) => return DeletionOutcome::Failed(error.to_string()),
        }
    }
}
