//! Checks in a history whether a limit was ever exceeded, and how long free slots were idle. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::etcd_history::{HistoryEntry, ObjectChange, StoredJobState};

/// What the history shows about a limit over one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitReport {
    /// The maximum number of active Jobs at any revision.
    pub max_active: usize,
    /// The first revision with that number.
    pub max_active_revision: u64,
    /// Numbers ([`NUMBER`](super::NUMBER)) of Jobs that were ever active.
    pub admitted: BTreeSet<String>,
    /// Numbers of Jobs that finished.
    pub finished: BTreeSet<String>,
    /// Writes of Jobs.
    pub events: usize,
    /// Writes of the ledger.
    pub ledger_writes: usize,
    /// The time until the limit was reached, or all Jobs were admitted.
    pub filled_after: Option<Duration>,
    /// The longest time in which a slot was free (fewer Jobs active or pending than the limit allows), clients tried to
    /// create Jobs, and none was admitted.
    pub longest_idle: Duration,
    /// The longest time that an attempt was in the ledger.
    pub longest_attempt: Duration,
    /// Attempts in the ledger at the end.
    pub pending: usize,
}

/// Checks the entries about one namespace and its ledger since `start`, under a limit of `max`, while clients create
/// `total` Jobs.
pub fn check_limit(
    entries: &[HistoryEntry],
    namespace: &str,
    max: usize,
    total: usize,
    start: Instant,
) -> LimitReport {
    let mut report = LimitReport::default();
    let mut active: BTreeSet<&str> = BTreeSet::new();
    let mut pending: &BTreeMap<String, String> = &BTreeMap::new();
    let mut since: HashMap<&str, Instant> = HashMap::new();
    let prefix = format!("{namespace}/");
    // The time since which a slot is free and no Job was admitted.
    let mut idle: Option<Instant> = Some(start);
    for entry in entries {
        let admitted = report.admitted.len();
        match &entry.change {
            ObjectChange::Job { key, state, number, .. } if key.starts_with(&prefix) => {
                report.events += 1;
                if *state == StoredJobState::Active {
                    active.insert(key);
                    report.admitted.extend(number.clone());
                } else {
                    active.remove(key.as_str());
                    if *state == StoredJobState::Finished {
                        report.finished.extend(number.clone());
                    }
                }
                if active.len() > report.max_active {
                    (report.max_active, report.max_active_revision) = (active.len(), entry.revision);
                }
            }
            ObjectChange::Ledger(name, now) if name == namespace => {
                report.ledger_writes += 1;
                since.retain(|request, at| {
                    let stays = now.contains_key(*request);
                    if !stays {
                        report.longest_attempt = report.longest_attempt.max(entry.at - *at);
                    }
                    stays
                });
                now.keys().for_each(|request| {
                    since.entry(request).or_insert(entry.at);
                });
                pending = now;
            }
            _ => continue,
        }
        let taken: BTreeSet<&str> =
            active.iter().copied().chain(pending.values().map(String::as_str)).collect();
        let progress = report.admitted.len() > admitted;
        if progress && report.admitted.len() == max.min(total) {
            report.filled_after = Some(entry.at - start);
        }
        if let Some(from) = idle {
            report.longest_idle = report.longest_idle.max(entry.at - from);
        }
        let free = taken.len() < max && report.admitted.len() < total;
        idle = match idle {
            _ if !free => None,
            Some(from) if !progress => Some(from),
            _ => Some(entry.at),
        };
    }
    report.pending = pending.len();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script(Instant, Vec<HistoryEntry>);

    impl Script {
        fn at(&mut self, seconds: u64, change: ObjectChange) {
            let revision = self.1.len() as u64 + 1;
            self.1.push(HistoryEntry { revision, at: self.0 + Duration::from_secs(seconds), change });
        }

        fn job(&mut self, seconds: u64, key: &str, state: StoredJobState) {
            let number = key.split_once('/').map(|(_, name)| name.to_owned());
            self.at(seconds, ObjectChange::Job { key: key.to_owned(), state, number, managed_by: None });
        }

        fn ledger(&mut self, seconds: u64, attempts: &[(&str, &str)]) {
            let attempts = attempts.iter().map(|(r, job)| ((*r).to_owned(), (*job).to_owned())).collect();
            self.at(seconds, ObjectChange::Ledger("ci".to_owned(), attempts));
        }

        fn check_limit(&self, max: usize, total: usize) -> LimitReport {
            check_limit(&self.1, "ci", max, total, self.0)
        }
    }

    #[test]
    fn the_maximum_of_active_jobs_is_found_with_its_revision() {
        let mut script = Script(Instant::now(), Vec::new());
        script.job(0, "ci/a", StoredJobState::Active);
        script.job(1, "ci/b", StoredJobState::Active);
        script.job(1, "other/c", StoredJobState::Active);
        script.job(2, "ci/a", StoredJobState::Finished);
        script.job(3, "ci/c", StoredJobState::Suspended);
        script.job(4, "ci/c", StoredJobState::Active);
        script.job(4, "ci/b", StoredJobState::Gone);
        let report = script.check_limit(2, 3);
        assert_eq!((report.max_active, report.max_active_revision, report.admitted.len()), (2, 2, 3));
        assert_eq!(report.finished.len(), 1);
        assert_eq!(report.filled_after, Some(Duration::from_secs(1)));
        assert_eq!(script.check_limit(3, 4).filled_after, Some(Duration::from_secs(4)));
    }

    #[test]
    fn a_slot_is_idle_while_it_is_free_and_jobs_are_wanted() {
        let mut script = Script(Instant::now(), Vec::new());
        // Free for 2 s, then taken by an attempt for 10 s.
        script.ledger(2, &[("r1", "ci/a")]);
        script.ledger(12, &[]);
        // Free again for 3 s.
        script.job(15, "ci/b", StoredJobState::Active);
        script.job(20, "ci/b", StoredJobState::Finished);
        // And for 1 s; then all Jobs are admitted.
        script.job(21, "ci/c", StoredJobState::Active);
        script.job(40, "ci/c", StoredJobState::Finished);
        let report = script.check_limit(1, 2);
        assert_eq!(report.longest_idle, Duration::from_secs(3));
        assert_eq!(report.longest_attempt, Duration::from_secs(10));
        assert_eq!((report.ledger_writes, report.pending), (2, 0));
        assert_eq!(script.check_limit(1, 3).longest_idle, Duration::from_secs(3));
        assert_eq!(script.check_limit(2, 3).longest_idle, Duration::from_secs(19));
    }
}
