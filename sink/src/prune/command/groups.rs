//! The groups seen so far, and the Jobs of each that stay. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use job_handler_shared::{job::snapshot::JobSnapshot, policy::cleanup::Keep};

use crate::prune::{
    command::candidate::PruneCandidate,
    keep::{JobRank, RetainedJobs},
};

/// Namespace and label value of a group.
pub(super) type PruneGroupId = (String, String);

/// All groups; memory is bounded by the Jobs that stay.
#[derive(Default)]
pub(super) struct PruneGroups(HashMap<PruneGroupId, PruneGroup>);

struct PruneGroup {
    retained: RetainedJobs,
    /// The retained Jobs by uid.
    candidates: BTreeMap<String, PruneCandidate>,
    /// What the GETs of the retained Jobs found. Anything but `Present` keeps all Jobs of the group until a newer Job is seen.
    check: RetainedCheck,
}

/// Whether the retained Jobs of a group still exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum RetainedCheck {
    #[default]
    Present,
    /// This Job is gone or being deleted.
    Deleted(String),
    /// A Job could not be read, with the error.
    Unknown(String),
}

impl PruneGroups {
    /// Adds a Job and returns the Jobs of its group that no longer stay because of it.
    pub(super) fn offer(&mut self, id: &PruneGroupId, job: JobSnapshot, keep: Keep) -> Vec<PruneCandidate> {
        let group = self.0.entry(id.clone()).or_insert_with(|| PruneGroup {
            retained: RetainedJobs::new(keep),
            candidates: BTreeMap::new(),
            check: RetainedCheck::Present,
        });
        let rank = JobRank::from(&job);
        let out = group.retained.offer(rank.clone());
        group.candidates.insert(job.uid.clone(), PruneCandidate::from(job));
        if group.retained.newest() == Some(&rank) {
            // The new newest Job makes an earlier failed check irrelevant.
            group.check = RetainedCheck::Present;
        }
        out.iter().filter_map(|rank| group.candidates.remove(&rank.uid)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn check_of(&self, id: &PruneGroupId) -> RetainedCheck {
        self.0.get(id).map(|group| group.check.clone()).unwrap_or_default()
    }

    /// Returns the retained Jobs of these groups that no GET has verified yet.
    pub(super) fn unverified(
        &mut self,
        ids: BTreeSet<PruneGroupId>,
    ) -> Vec<(PruneGroupId, Vec<JobSnapshot>)> {
        let mut unverified = Vec::new();
        for id in ids {
            let Some(group) = self.0.get_mut(&id) else { continue };
            if matches!(group.check, RetainedCheck::Deleted(_)) {
                continue;
            }
            // An error is worth a further try.
            group.check = RetainedCheck::Present;
            let jobs = group.candidates.values().filter(|candidate| !candidate.verified);
            let jobs: Vec<_> = jobs.map(|candidate| candidate.job.clone()).collect();
            if !jobs.is_empty() {
                unverified.push((id, jobs));
            }
        }
        unverified
    }

    /// Records what the GETs of a group's retained Jobs found.
    pub(super) fn set_check(&mut self, id: &PruneGroupId, check: RetainedCheck) {
        let Some(group) = self.0.get_mut(id) else { return };
        if check == RetainedCheck::Present {
            group.candidates.values_mut().for_each(|candidate| candidate.verified = true);
        }
        group.check = check;
    }

    /// The retained Jobs in the order of groups, the newest first, each with its label value and why it stays.
    pub(super) fn into_retained(self, keep: Keep) -> Vec<(String, JobSnapshot, String)> {
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_by(|a, b| a.0.cmp(&b.0));
        let mut all = Vec::new();
        for ((_, value), mut group) in groups {
            let mut ranks: Vec<_> = group.retained.iter().cloned().collect();
            ranks.sort_by(|a, b| b.cmp(a));
            for rank in ranks {
                let Some(PruneCandidate { job, .. }) = group.candidates.remove(&rank.uid) else { continue };
                let mut why = group.reason(&rank, keep);
                if group.check == RetainedCheck::Deleted(job.name.clone()) {
                    why.push_str("; deleted meanwhile");
                }
                all.push((value.clone(), job, why));
            }
        }
        all
    }
}

impl PruneGroup {
    fn reason(&self, rank: &JobRank, Keep { newest, newest_succeeded }: Keep) -> String {
        if self.retained.newest() == Some(rank) {
            "the newest of its group".to_owned()
        } else if self.retained.is_newest(rank) {
            format!("one of the {newest} newest of its group")
        } else {
            format!("one of the {newest_succeeded} newest of its group that completed")
        }
    }
}
