//! What the command remembers of a Job, and whether it may be deleted. Pure.

use job_handler_shared::{job::snapshot::JobSnapshot, keys};

use crate::prune::keep::{self, KeepReason};

/// A Job without its labels, annotations and texts, so that it takes little memory.
#[derive(Clone, Debug)]
pub(super) struct PruneCandidate {
    pub(super) job: JobSnapshot,
    /// Why its result may still have to be stored.
    awaits_harvest: Option<&'static str>,
    /// A GET has shown that it exists.
    pub(super) verified: bool,
}

impl From<JobSnapshot> for PruneCandidate {
    fn from(mut job: JobSnapshot) -> Self {
        let awaits_harvest = awaits_harvest(&job);
        (job.labels, job.annotations, job.owner) = Default::default();
        if let Some(finished) = &mut job.finished {
            (finished.reason, finished.message) = Default::default();
        }
        Self { job, awaits_harvest, verified: false }
    }
}

impl PruneCandidate {
    /// Returns why this Job, which is not among the newest, stays nevertheless.
    pub(super) fn keep_reason(&self, delete_unharvested: bool) -> Option<String> {
        let awaits = self.awaits_harvest.filter(|_| !delete_unharvested);
        match (keep::check_deletable(&self.job, awaits.is_none()), awaits) {
            (Ok(()), _) => None,
            (Err(KeepReason::NotHarvested), Some(why)) => {
                Some(format!("{why}; --unharvested deletes it anyway"))
            }
            (Err(reason), _) => Some(reason.to_string()),
        }
    }
}

/// Returns why a result of this Job may still have to be stored, as far as the Job itself shows.
///
/// The command reads neither policies nor results, since its user may not have the rights to. The webhook parks the TTL of
/// a Job whose result a policy asks for, it marks each Job that a policy selects, and the sink names the result on the Job
/// once it is stored.
fn awaits_harvest(job: &JobSnapshot) -> Option<&'static str> {
    let has = |key| job.annotations.contains_key(key);
    let opted_out = job.labels.get(keys::ENABLED).is_some_and(|value| value == "false");
    if has(keys::RESULTS) || opted_out {
        None
    } else if has(keys::TTL) {
        Some("its result is not stored yet")
    } else if has(keys::STAMPED) {
        Some("a policy selected it and no stored result is named on it")
    } else {
        None
    }
}
