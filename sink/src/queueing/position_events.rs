//! Tells queued Jobs what they wait for and their place: once, and again as they move up, but no more often than people
//! can read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::{
        scope::{ScopeDomain, ScopeKey},
        snapshot::JobSnapshot,
    },
    keys,
    ledger::refusal::IN_BACKOFF,
    names,
    text::human_seconds,
};

use crate::{
    notify::{
        recorder::{EventSpec, EventType, job_reference},
        refusal_series::{Allowances, policy_reference},
    },
    queueing::{failure_backoff::Waits, slots::Counted},
};

/// Least time between two Events about one Job.
const EVERY: Duration = Duration::from_secs(10);
/// Events per look.
const AT_ONCE: usize = 20;
/// Holders of a limit's slots that are named.
const NAMED: usize = 2;

/// What a queued Job waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum For {
    /// A slot of a limit.
    Slot {
        /// Which.
        scope: ScopeKey,
        /// How many there are.
        max: u32,
        /// Who has them, some of them.
        holders: Vec<String>,
        /// Its place in the line, from 1.
        place: usize,
        /// Who is before it.
        before: Option<String>,
    },
    /// Its group's next try.
    Backoff(Waits),
}

/// What those who are queued wait for, in the order of the line. `waits` tells of groups that wait after failures.
pub fn line(jobs: &[Counted], waits: impl Fn(&JobSnapshot) -> Option<Waits>) -> Vec<(Arc<JobSnapshot>, For)> {
    let mut holders: HashMap<&ScopeKey, Vec<&JobSnapshot>> = HashMap::new();
    for (job, scopes) in jobs.iter().filter(|(job, _)| job.is_active()) {
        scopes.iter().for_each(|(scope, _)| holders.entry(scope).or_default().push(job));
    }
    holders.values_mut().for_each(|jobs| jobs.sort_by_key(|job| (job.created, &job.uid)));
    let mut queued: Vec<&Counted> = jobs
        .iter()
        .filter(|(job, _)| job.is_queued() && job.deleting_since.is_none() && !job.is_managed_by_others())
        .collect();
    queued.sort_by(|(a, _), (b, _)| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
    let mut lines: BTreeMap<&ScopeKey, Vec<&JobSnapshot>> = BTreeMap::new();
    let mut told = Vec::new();
    for (job, scopes) in queued {
        if let Some(waits) = waits(job) {
            told.push((job.clone(), For::Backoff(waits)));
            continue;
        }
        let full = scopes.iter().find(|(scope, max)| {
            let taken = holders.get(scope).map_or(0, Vec::len) + lines.get(scope).map_or(0, Vec::len);
            taken >= *max as usize
        });
        if let Some((scope, max)) = full {
            let ahead = lines.get(scope).map(Vec::as_slice).unwrap_or_default();
            let has = holders.get(scope).into_iter().flatten().take(NAMED);
            let what = For::Slot {
                scope: scope.clone(),
                max: *max,
                holders: has.map(|job| name(job, scope)).collect(),
                place: ahead.len() + 1,
                before: ahead.last().map(|job| name(job, scope)),
            };
            told.push((job.clone(), what));
        }
        scopes.iter().for_each(|(scope, _)| lines.entry(scope).or_default().push(job));
    }
    told
}

fn name(job: &JobSnapshot, scope: &ScopeKey) -> String {
    if scope.domain == ScopeDomain::Cluster { job.key() } else { job.name.clone() }
}

impl For {
    /// A number that falls as the Job moves up.
    fn rank(&self) -> usize {
        match self {
            Self::Slot { place, .. } => *place,
            Self::Backoff(_) => 0,
        }
    }

    /// For people.
    pub fn text(&self, now: jiff::Timestamp) -> String {
        match self {
            Self::Slot { scope, max, holders, place, before } => {
                let before = before.as_ref().map(|before| format!(", behind {before}")).unwrap_or_default();
                let has = match holders.is_empty() {
                    true => String::new(),
                    false => format!("; it is held by {}", holders.join(", ")),
                };
                format!(
                    "queued: waits for a slot (limit \"{}\" of {}, max allowed: {max}): number {place} in line{before}{has}",
                    scope.limit, scope.policy
                )
            }
            Self::Backoff(waits) => {
                let left = human_seconds(waits.until.as_second().saturating_sub(now.as_second()).max(1));
                let times = if waits.failures == 1 { "time" } else { "times in a row" };
                format!(
                    "queued: {IN_BACKOFF}: group {} failed {} {times} (last: {}); this Job is started in {left}, at {}, \
                     where there is room (failureBackoff of {})",
                    waits.group, waits.failures, waits.last, waits.until, waits.policy
                )
            }
        }
    }

    fn policy(&self) -> &job_handler_shared::policy::reference::PolicyRef {
        match self {
            Self::Slot { scope, .. } => &scope.policy,
            Self::Backoff(waits) => &waits.policy,
        }
    }
}

/// What was told, of those that still wait.
#[derive(Debug, Default)]
pub struct Line {
    told: HashMap<String, (usize, String, Instant)>,
    allowances: Allowances,
}

impl Line {
    /// Those that are to be told now: who was never, and who has come to half the place it was told, or to the head.
    pub fn due(&mut self, line: Vec<(Arc<JobSnapshot>, For)>, now: Instant) -> Vec<(Arc<JobSnapshot>, For)> {
        let waiting: HashSet<&str> = line.iter().map(|(job, _)| job.uid.as_str()).collect();
        self.told.retain(|uid, _| waiting.contains(uid.as_str()));
        drop(waiting);
        let mut due = Vec::new();
        for (job, what) in line {
            let (rank, kind) = (what.rank(), what.policy().uid.clone());
            let news = match self.told.get(&job.uid) {
                None => true,
                Some((before, policy, at)) => {
                    let moved = *policy != kind
                        || (rank == 0) != (*before == 0)
                        || (rank < *before && rank <= before.div_ceil(2));
                    moved && now.saturating_duration_since(*at) >= EVERY
                }
            };
            if news && due.len() < AT_ONCE && self.allowances.allow(&job.namespace, now) {
                self.told.insert(job.uid.clone(), (rank, kind, now));
                due.push((job, what));
            }
        }
        due
    }
}

/// The Event.
pub(crate) fn told(job: &JobSnapshot, what: &For) -> EventSpec {
    let name = names::event_name(&job.name, &job.uid, keys::REASON_QUEUED);
    let hash = names::short_hash([what.policy().uid.as_str()]);
    EventSpec {
        namespace: job.namespace.clone(),
        // A note cannot be changed: each place is an Event of its own.
        name: names::object_name(&name, &format!(".{hash}.{}", what.rank())),
        event_type: EventType::Normal,
        reason: keys::REASON_QUEUED,
        action: "Queued",
        note: what.text(jiff::Timestamp::now()),
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: Some(policy_reference(what.policy())),
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::reference::{PolicyKind, PolicyRef};

    use super::*;

    fn policy() -> PolicyRef {
        PolicyRef {
            kind: PolicyKind::JobPolicy,
            namespace: Some("ci".into()),
            name: "p".into(),
            uid: "p".into(),
        }
    }

    fn job(name: &str, queued: bool) -> Counted {
        let mut job =
            JobSnapshot { name: name.into(), uid: name.into(), suspended: queued, ..JobSnapshot::default() };
        if queued {
            job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            job.annotations.insert(keys::STAMPED.into(), "queued: waits for a slot".into());
        }
        let scope =
            ScopeKey { policy: policy(), limit: "few".into(), domain: ScopeDomain::Namespace("ci".into()) };
        (Arc::new(job), vec![(scope, 1)])
    }

    fn texts(jobs: &[Counted]) -> Vec<String> {
        line(jobs, |_| None).iter().map(|(_, what)| what.text(jiff::Timestamp::UNIX_EPOCH)).collect()
    }

    #[test]
    fn each_is_told_its_place_who_is_before_it_and_who_has_the_slots() {
        let texts = texts(&[job("runs", false), job("b", true), job("a", true)]);
        let common = "queued: waits for a slot (limit \"few\" of JobPolicy ci/p, max allowed: 1): number";
        assert_eq!(texts[0], format!("{common} 1 in line; it is held by runs"));
        assert_eq!(texts[1], format!("{common} 2 in line, behind a; it is held by runs"));
    }

    #[test]
    fn who_is_about_to_start_waits_for_nothing() {
        assert_eq!(texts(&[job("a", true)]), Vec::<String>::new());
    }

    #[test]
    fn told_once_and_again_at_half_the_place() {
        let mut known = Line::default();
        let start = Instant::now();
        let at = |place| {
            let (job, scopes) = job("a", true);
            let scope = scopes[0].0.clone();
            vec![(job, For::Slot { scope, max: 1, holders: vec![], place, before: None })]
        };
        let mut told =
            |place, seconds| !known.due(at(place), start + Duration::from_secs(seconds)).is_empty();
        assert!(told(10, 0) && !told(10, 100) && !told(6, 100) && told(5, 100));
        assert!(!told(1, 105), "no more often than so");
        assert!(told(1, 111) && !told(1, 1000));
    }
}
