//! Aggregates floods of refusals into Event series, one per policy, limit, decision and regarded object: the first
//! refusal is written at once, then the count at most every [`WRITE_INTERVAL`]. Pure, with the clock passed in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::ledger::refusal::{Refusal, RefusalKind};

use crate::notify::{
    event_rate::EventRateLimiter,
    recorder::EventSpec,
    refusal_event::{self, RefusalTarget},
};

/// Least time between two writes of one series.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);
/// A series without refusals for this long has ended; the next refusal begins a new one (as client-go's `events` does).
const SERIES_GAP: Duration = Duration::from_secs(360);
/// A series older than this is replaced by a new one: the note of an Event is immutable, and the reasons change.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Series in memory; beyond this number, only Events about policies are written.
const MAX_SERIES: usize = 10_000;

/// A pending write.
#[derive(Clone, Debug)]
pub(crate) enum SeriesWrite {
    /// Create the Event.
    First {
        event: EventSpec,
        /// If an Event of that name exists, its count goes up by one. Otherwise it already stands for this refusal.
        counts: bool,
    },
    /// Raise the count of an Event by `more`, at least 1.
    Count { event: EventSpec, more: i32, last: Timestamp },
}

/// The series that have not ended, and the namespaces' rate limits.
#[derive(Debug, Default)]
pub(crate) struct RefusalSeries {
    series: HashMap<SeriesKey, SeriesCount>,
    rate: EventRateLimiter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    policy: String,
    limit: String,
    decision: RefusalKind,
    owner: Option<String>,
    target: RefusalTarget,
}

#[derive(Debug)]
struct SeriesCount {
    event: EventSpec,
    begun: Instant,
    written_at: Instant,
    last: Instant,
    last_timestamp: Timestamp,
    count: i32,
    written: i32,
}

impl RefusalSeries {
    /// Adds a refusal. Returns the writes that are due, and how many Events the rate limits dropped.
    pub(crate) fn add(&mut self, refusal: &Refusal, now: Instant) -> (Vec<SeriesWrite>, usize) {
        let (mut writes, mut dropped) = (Vec::new(), 0);
        for (target, regarding) in refusal_event::targets(refusal) {
            let is_job = matches!(target, RefusalTarget::Job { .. });
            let key = SeriesKey {
                policy: refusal.policy.uid.clone(),
                limit: refusal.limit.clone(),
                decision: refusal.decision,
                // Series of the policy and of the owner are kept per owner; a Job's series is its own.
                owner: refusal.owner.as_ref().map(|o| o.uid.clone()).filter(|_| !is_job),
                target,
            };
            if let Some(series) = self.series.get_mut(&key).filter(|series| series.is_open(now)) {
                series.count = series.count.saturating_add(1);
                (series.last, series.last_timestamp) = (now, refusal.at);
                writes.extend(series.count_if_due(now));
                continue;
            }
            let event = refusal_event::event(refusal, &key.target, key.owner.as_deref(), regarding);
            // Each sink whose webhook was asked about a create reports it, and it counts once.
            let counts = !is_job || (refusal.stored && refusal.decision == RefusalKind::Refused);
            let is_policy = key.target == RefusalTarget::Policy;
            if !is_policy && (self.series.len() >= MAX_SERIES || !self.rate.allow(&event.namespace, now)) {
                dropped += 1;
                continue;
            }
            self.series.insert(key, SeriesCount::new(event.clone(), now, refusal.at));
            writes.push(SeriesWrite::First { event, counts });
        }
        (writes, dropped)
    }

    /// Returns the counts that are due, and drops series that have ended.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<SeriesWrite> {
        let writes = self.series.values_mut().filter_map(|series| series.count_if_due(now)).collect();
        let ended = |series: &SeriesCount| now.saturating_duration_since(series.last) >= SERIES_GAP;
        self.series.retain(|_, series| !ended(series) || series.written < series.count);
        self.rate.drop_idle(now);
        writes
    }
}

impl SeriesCount {
    fn new(event: EventSpec, now: Instant, timestamp: Timestamp) -> Self {
        Self {
            event,
            begun: now,
            written_at: now,
            last: now,
            last_timestamp: timestamp,
            count: 1,
            written: 1,
        }
    }

    fn is_open(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < SERIES_GAP
            && now.saturating_duration_since(self.begun) < MAX_AGE
    }

    fn count_if_due(&mut self, now: Instant) -> Option<SeriesWrite> {
        if self.written == self.count || now.saturating_duration_since(self.written_at) < WRITE_INTERVAL {
            return None;
        }
        let more = self.count - self.written;
        (self.written, self.written_at) = (self.count, now);
        Some(SeriesWrite::Count { event: self.event.clone(), more, last: self.last_timestamp })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use job_handler_shared::{job::snapshot::Owner, policy::reference::PolicyKind, testing::refusals};

    use super::*;

    pub(crate) fn refusal(job: &str, owner: Option<&str>) -> Refusal {
        let owner = owner.map(|name| Owner {
            api_version: "batch/v1".into(),
            kind: "CronJob".into(),
            name: name.into(),
            uid: name.into(),
        });
        Refusal { owner, ..refusals::refusal(job) }
    }

    #[test]
    fn the_first_refusal_is_written_for_policy_owner_and_job_at_once() {
        let (writes, dropped) = RefusalSeries::default().add(&refusal("a", Some("nightly")), Instant::now());
        let about: Vec<_> = writes
            .iter()
            .map(|write| match write {
                SeriesWrite::First { event, .. } => {
                    let about = &event.regarding;
                    (about.kind.clone().unwrap(), about.name.clone().unwrap(), about.uid.clone())
                }
                SeriesWrite::Count { .. } => panic!("a count"),
            })
            .collect();
        assert_eq!(
            about,
            [
                ("JobPolicy".to_owned(), "builds".to_owned(), Some("p".to_owned())),
                ("CronJob".to_owned(), "nightly".to_owned(), Some("nightly".to_owned())),
                ("Job".to_owned(), "a".to_owned(), None),
            ]
        );
        assert_eq!(dropped, 0);
    }

    #[test]
    fn a_flood_causes_one_write_per_ten_seconds() {
        let (mut series, start) = (RefusalSeries::default(), Instant::now());
        let (mut firsts, mut counts) = (0, Vec::new());
        for n in 0..1000u32 {
            let now = start + Duration::from_millis(u64::from(n) * 30);
            for write in series.add(&refusal("same", None), now).0 {
                match write {
                    SeriesWrite::First { .. } => firsts += 1,
                    SeriesWrite::Count { more, .. } => counts.push(more),
                }
            }
        }
        assert_eq!(firsts, 2, "policy and Job");
        assert!(counts.len() <= 2 * 3, "30 seconds: {counts:?}");
        let last = series.due(start + Duration::from_secs(60));
        counts.extend(last.iter().map(|write| match write {
            SeriesWrite::Count { more, .. } => *more,
            SeriesWrite::First { .. } => panic!("a first write"),
        }));
        assert_eq!((last.len(), counts.iter().sum::<i32>()), (2, 2 * 999), "each refusal is counted once");
        assert!(series.due(start + Duration::from_secs(600)).is_empty());
        assert!(series.series.is_empty());
    }

    #[test]
    fn events_about_jobs_are_rate_limited_per_namespace() {
        let (mut series, now) = (RefusalSeries::default(), Instant::now());
        let mut written = 0;
        let mut dropped = 0;
        for n in 0..500 {
            let (writes, more) = series.add(&refusal(&format!("job-{n}"), None), now);
            written += writes.len();
            dropped += more;
        }
        assert_eq!((written, dropped), (51, 450));
    }

    /// Two sinks receive the refusal from their own webhooks, a moment apart.
    #[test]
    fn two_sinks_name_the_events_of_one_refusal_alike() {
        let names = |refusal: &Refusal| -> Vec<(String, bool)> {
            let writes = RefusalSeries::default().add(refusal, Instant::now()).0;
            let name = |write: SeriesWrite| match write {
                SeriesWrite::First { event, counts } => (event.name, counts),
                SeriesWrite::Count { .. } => panic!("a count"),
            };
            writes.into_iter().map(name).collect()
        };
        let one = refusal("a", Some("nightly"));
        let mut other = one.clone();
        other.at = Timestamp::from_nanosecond(5).unwrap();
        assert_eq!(names(&one), names(&other));
        assert_eq!(names(&one).iter().map(|(_, counts)| *counts).collect::<Vec<_>>(), [true, true, false]);
        let mut again = one.clone();
        again.uid = "another try".into();
        assert_eq!(names(&one)[..2], names(&again)[..2]);
        assert_ne!(names(&one)[2], names(&again)[2]);
    }

    #[test]
    fn the_event_on_an_existing_job_bears_its_uid() {
        let mut stored = refusal("a", None);
        stored.stored = true;
        let (writes, _) = RefusalSeries::default().add(&stored, Instant::now());
        let Some(SeriesWrite::First { event, counts: true }) = writes.last() else { panic!("{writes:?}") };
        assert_eq!(event.regarding.uid.as_deref(), Some("uid-a"));
        stored.decision = RefusalKind::Queued;
        assert_eq!(
            RefusalSeries::default().add(&stored, Instant::now()).0.len(),
            1,
            "the policy alone; queueing reports on the Job"
        );
    }

    #[test]
    fn a_cluster_policys_events_are_in_default() {
        let mut refusal = refusal("a", None);
        refusal.policy.kind = PolicyKind::ClusterJobPolicy;
        refusal.policy.namespace = None;
        let (writes, _) = RefusalSeries::default().add(&refusal, Instant::now());
        let SeriesWrite::First { event, .. } = &writes[0] else { panic!() };
        assert_eq!((event.namespace.as_str(), event.regarding.namespace.clone()), ("default", None));
    }
}
