//! Finished Jobs that are gone before their result was stored: what was known of them, until it is written down.
//!
//! A person, a CronJob's history limit or the end of the harvest deadline can delete a Job while it still waits in our
//! queue. Every sink remembers such Jobs, so that a new leader can write down what the old one had no time for; what
//! nobody asked about for [`AGE`] was handled by another sink, or never can be.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::snapshot::JobSnapshot, policy::results::Results, result::pending_events::PendingEvents,
};

use crate::model::job_change::Uid;

/// How long they are remembered: well above the time that a change of leaders takes.
const AGE: Duration = Duration::from_secs(600);
/// From so many on, those of that age are thrown out. Fewer take no room worth a look.
const MANY: usize = 1024;

/// A Job that is gone, as it was last.
#[derive(Clone, Debug)]
pub struct Buried {
    /// The Job.
    pub job: Arc<JobSnapshot>,
    /// What was to be kept of it.
    pub results: Results,
    /// Its group.
    pub group: Option<String>,
    /// CloudEvents that are to be told of it.
    pub events: PendingEvents,
    /// Since when.
    pub since: Instant,
}

/// All that are remembered.
#[derive(Debug, Default)]
pub struct Graves(HashMap<Uid, Buried>);

impl Graves {
    /// Takes one in.
    pub fn put(&mut self, buried: Buried) {
        if self.0.len() >= MANY {
            let now = buried.since;
            self.0.retain(|_, known| known.is_fresh(now));
        }
        self.0.insert(buried.job.uid.clone(), buried);
    }

    /// One that is remembered.
    pub fn get(&self, uid: &str) -> Option<&Buried> {
        self.0.get(uid).filter(|buried| buried.is_fresh(Instant::now()))
    }

    /// Whoever leads has tried in vain, and goes on trying.
    pub fn renew(&mut self, uid: &str) {
        if let Some(buried) = self.0.get_mut(uid) {
            buried.since = Instant::now();
        }
    }

    /// It is written down.
    pub fn remove(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// All of them.
    pub fn uids(&self) -> Vec<Uid> {
        let now = Instant::now();
        self.0.values().filter(|buried| buried.is_fresh(now)).map(|buried| buried.job.uid.clone()).collect()
    }
}

impl Buried {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < AGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_old_ones_make_room() {
        let mut graves = Graves::default();
        let start = Instant::now();
        let put = |graves: &mut Graves, n: usize, since| {
            let job = Arc::new(JobSnapshot { uid: n.to_string(), ..JobSnapshot::default() });
            graves.put(Buried {
                job,
                results: Results::default(),
                group: None,
                events: PendingEvents::new(),
                since,
            });
        };
        for n in 0..MANY {
            put(&mut graves, n, start);
        }
        put(&mut graves, MANY, start);
        assert_eq!(graves.0.len(), MANY + 1, "young ones stay, however many");
        put(&mut graves, MANY + 1, start + AGE);
        assert_eq!(graves.0.len(), 1);
    }
}
