//! Finished Jobs that were deleted before their result was stored.
//!
//! A user, a CronJob's history limit or the harvest deadline can delete a Job while it waits in the work queue. Every
//! sink remembers such Jobs, so that a new leader can report those that the old one did not get to. A tombstone that
//! no sink renews for [`MAX_AGE`] was handled by another sink, or cannot be handled.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::snapshot::JobSnapshot, policy::results::Results, result::pending_events::PendingEvents,
};

use crate::model::job_change::Uid;

/// A tombstone is kept for longer than a change of leaders takes.
const MAX_AGE: Duration = Duration::from_secs(600);
/// From this number on, expired tombstones are removed on insert.
const CLEAN_AT: usize = 1024;

/// A deleted Job in its last known state.
#[derive(Clone, Debug)]
pub(crate) struct DeletedJob {
    pub(crate) job: Arc<JobSnapshot>,
    /// What its policies request to store.
    pub(crate) results: Results,
    pub(crate) group: Option<String>,
    /// CloudEvents still to be delivered.
    pub(crate) events: PendingEvents,
    pub(crate) since: Instant,
}

/// Tombstones by the uid of their Job.
#[derive(Debug, Default)]
pub(crate) struct Tombstones(HashMap<Uid, DeletedJob>);

impl Tombstones {
    pub(crate) fn put(&mut self, deleted: DeletedJob) {
        if self.0.len() >= CLEAN_AT {
            let now = deleted.since;
            self.0.retain(|_, known| known.is_fresh(now));
        }
        self.0.insert(deleted.job.uid.clone(), deleted);
    }

    /// Returns a tombstone that has not expired.
    pub(crate) fn get(&self, uid: &str) -> Option<&DeletedJob> {
        self.0.get(uid).filter(|deleted| deleted.is_fresh(Instant::now()))
    }

    /// Restarts the age of a tombstone that the leader could not report yet.
    pub(crate) fn renew(&mut self, uid: &str) {
        if let Some(deleted) = self.0.get_mut(uid) {
            deleted.since = Instant::now();
        }
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    pub(crate) fn uids(&self) -> Vec<Uid> {
        let now = Instant::now();
        self.0
            .values()
            .filter(|deleted| deleted.is_fresh(now))
            .map(|deleted| deleted.job.uid.clone())
            .collect()
    }
}

impl DeletedJob {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < MAX_AGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_tombstones_are_removed_once_there_are_many() {
        let mut tombstones = Tombstones::default();
        let start = Instant::now();
        let put = |tombstones: &mut Tombstones, n: usize, since| {
            let job = Arc::new(JobSnapshot { uid: n.to_string(), ..JobSnapshot::default() });
            tombstones.put(DeletedJob {
                job,
                results: Results::default(),
                group: None,
                events: PendingEvents::new(),
                since,
            });
        };
        for n in 0..CLEAN_AT {
            put(&mut tombstones, n, start);
        }
        put(&mut tombstones, CLEAN_AT, start);
        assert_eq!(tombstones.0.len(), CLEAN_AT + 1, "fresh tombstones stay, however many");
        put(&mut tombstones, CLEAN_AT + 1, start + MAX_AGE);
        assert_eq!(tombstones.0.len(), 1);
    }
}
