//! Damps floods of refusals: one series per policy, limit, decision and thing told; the first is written at once, then
//! the count at most every [`EVERY`]; new Events per namespace are capped. Pure, with the clock given.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    ledger::refusal::{Refusal, RefusalKind},
    names,
    policy::reference::{PolicyKind, PolicyRef},
};
use k8s_openapi::api::core::v1::ObjectReference;

use crate::notify::recorder::{EventSpec, EventType, job_reference};

/// Least time between two writes of one series.
pub const EVERY: Duration = Duration::from_secs(10);
/// A series that was quiet for this long is over; the next refusal begins a new one (as client-go's `events` does).
pub const QUIET: Duration = Duration::from_secs(360);
/// A series older than this is begun anew: an Event's note cannot be changed, and the reasons move on.
pub const LONGEST: Duration = Duration::from_secs(600);
/// New Events at once, per namespace.
const BURST: f64 = 50.0;
/// New Events per second after that, per namespace.
const RATE: f64 = 1.0;
/// Seconds of the wall clock that share one Event about a policy or an owner, so that several sinks write the same.
const BUCKET: i64 = 600;
/// Series that are remembered; beyond, only policies are told.
const MOST: usize = 10_000;

/// A write to be made.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// A new Event.
    First {
        /// The Event.
        told: EventSpec,
        /// Where one of that name is there already, this is one more of its series; else it has been told.
        counts: bool,
    },
    /// An Event's count goes up.
    Count {
        /// The Event.
        first: EventSpec,
        /// By so many, at least 1.
        more: i32,
        /// Time of the last.
        last: Timestamp,
    },
}

/// The series, and the namespaces' allowances.
#[derive(Debug, Default)]
pub(crate) struct Series {
    known: HashMap<Id, State>,
    allowances: Allowances,
}

/// How many new Events each namespace may have: a burst, then one after the other.
#[derive(Debug, Default)]
pub struct Allowances(HashMap<String, (f64, Instant)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Id {
    policy: String,
    limit: String,
    decision: RefusalKind,
    owner: Option<String>,
    target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Policy,
    Owner,
    Job(String, String),
}

#[derive(Debug)]
struct State {
    first: EventSpec,
    begun: Instant,
    written: Instant,
    last: Instant,
    last_at: Timestamp,
    count: i32,
    told: i32,
}

impl Series {
    /// Takes in a refusal; gives what is to be written now, and how many Events the caps kept from being written.
    pub(crate) fn offer(&mut self, refusal: &Refusal, now: Instant) -> (Vec<Write>, usize) {
        let (mut writes, mut dropped) = (Vec::new(), 0);
        for (target, regarding) in targets(refusal) {
            let id = Id {
                policy: refusal.policy.uid.clone(),
                limit: refusal.limit.clone(),
                decision: refusal.decision,
                // The policy's and the owner's series are apart per owner; a Job's name is its own.
                owner: refusal
                    .owner
                    .as_ref()
                    .map(|o| o.uid.clone())
                    .filter(|_| !matches!(target, Target::Job(..))),
                target,
            };
            if let Some(state) = self.known.get_mut(&id)
                && now.saturating_duration_since(state.last) < QUIET
                && now.saturating_duration_since(state.begun) < LONGEST
            {
                state.count = state.count.saturating_add(1);
                (state.last, state.last_at) = (now, refusal.at);
                writes.extend(state.count_if_due(now));
                continue;
            }
            let told = told(refusal, &id, regarding);
            // One refusal of a create is known to each sink whose webhook was asked about it, and told once.
            let counts = !matches!(id.target, Target::Job(..))
                || (refusal.stored && refusal.decision == RefusalKind::Refused);
            let is_policy = id.target == Target::Policy;
            if !is_policy && (self.known.len() >= MOST || !self.allowances.allow(&told.namespace, now)) {
                dropped += 1;
                continue;
            }
            let state = State {
                first: told.clone(),
                begun: now,
                written: now,
                last: now,
                last_at: refusal.at,
                count: 1,
                told: 1,
            };
            self.known.insert(id, state);
            writes.push(Write::First { told, counts });
        }
        (writes, dropped)
    }

    /// Counts that are due, and forgets series that are over.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Write> {
        let writes = self.known.values_mut().filter_map(|state| state.count_if_due(now)).collect();
        let over = |state: &State| now.saturating_duration_since(state.last) >= QUIET;
        self.known.retain(|_, state| !over(state) || state.told < state.count);
        self.allowances.forget(now);
        writes
    }
}

impl Allowances {
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < QUIET);
    }

    /// Whether one more may be written; then it counts.
    pub fn allow(&mut self, namespace: &str, now: Instant) -> bool {
        if self.0.len() >= MOST {
            self.forget(now);
        }
        let (left, at) = self.0.entry(namespace.to_owned()).or_insert((BURST, now));
        *left = (*left + now.saturating_duration_since(*at).as_secs_f64() * RATE).min(BURST);
        *at = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }
}

impl State {
    fn count_if_due(&mut self, now: Instant) -> Option<Write> {
        if self.told == self.count || now.saturating_duration_since(self.written) < EVERY {
            return None;
        }
        let more = self.count - self.told;
        (self.told, self.written) = (self.count, now);
        Some(Write::Count { first: self.first.clone(), more, last: self.last_at })
    }
}

/// What is told of a refusal: the policy, the owner where there is one, the Job's name.
fn targets(refusal: &Refusal) -> Vec<(Target, ObjectReference)> {
    let mut targets = vec![(Target::Policy, policy_reference(&refusal.policy))];
    if let Some(owner) = &refusal.owner {
        let reference = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            namespace: Some(refusal.namespace.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        };
        targets.push((Target::Owner, reference));
    }
    // Where the name is generated and not known yet, nobody could ask for it. Queued Jobs are told by whoever starts
    // them, who knows their place in line.
    if !refusal.job.is_empty() && refusal.decision != RefusalKind::Queued {
        let target = Target::Job(refusal.namespace.clone(), refusal.job.clone());
        // `kubectl describe` asks by uid; a Job whose create was refused has none that anybody could ask for.
        let uid = refusal.stored.then_some(refusal.uid.as_str());
        targets.push((target, job_reference(&refusal.namespace, &refusal.job, uid)));
    }
    targets
}

/// Refers to a policy.
pub fn policy_reference(policy: &PolicyRef) -> ObjectReference {
    let kind = match policy.kind {
        PolicyKind::JobPolicy => "JobPolicy",
        PolicyKind::ClusterJobPolicy => "ClusterJobPolicy",
    };
    ObjectReference {
        api_version: Some(format!("{}/{}", keys::API_GROUP, keys::API_VERSION)),
        kind: Some(kind.to_owned()),
        namespace: policy.namespace.clone(),
        name: Some(policy.name.clone()),
        uid: Some(policy.uid.clone()),
        ..ObjectReference::default()
    }
}

fn told(refusal: &Refusal, id: &Id, regarding: ObjectReference) -> EventSpec {
    let (kind, reason, action) = match refusal.decision {
        RefusalKind::Refused => (EventType::Warning, keys::REASON_REFUSED, "Refused"),
        RefusalKind::Queued => (EventType::Normal, keys::REASON_QUEUED, "Queued"),
        RefusalKind::WouldRefuse => (EventType::Normal, REASON_WOULD_REFUSE, "Admitted"),
    };
    let about = regarding.name.clone().unwrap_or_default();
    let owner = id.owner.as_deref().unwrap_or_default();
    let target = format!("{:?}", id.target);
    // The same in every sink that hears of it: by the Job's uid, or by the time, roughly.
    let which = match id.target {
        Target::Job(..) => refusal.uid.clone(),
        Target::Policy | Target::Owner => refusal.at.as_second().div_euclid(BUCKET).to_string(),
    };
    let identity = [id.policy.as_str(), &id.limit, owner, &target, reason, &which];
    let note = match id.target {
        Target::Job(..) => refusal.message.clone(),
        Target::Policy | Target::Owner => {
            format!("Job {}/{}: {}", refusal.namespace, refusal.job, refusal.message)
        }
    };
    EventSpec {
        namespace: regarding.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: names::object_name(&about, &format!(".{}", names::short_hash(identity))),
        event_type: kind,
        reason,
        action,
        note,
        related: match id.target {
            Target::Policy => Some(job_reference(&refusal.namespace, &refusal.job, None)),
            Target::Owner | Target::Job(..) => Some(policy_reference(&refusal.policy)),
        },
        regarding,
    }
}

/// Reason of Events about Jobs that a policy in mode Warn would have refused.
pub const REASON_WOULD_REFUSE: &str = "JobWouldBeRefused";

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::Owner;

    use super::*;

    fn refusal(job: &str, owner: Option<&str>) -> Refusal {
        Refusal {
            decision: RefusalKind::Refused,
            policy: PolicyRef {
                kind: PolicyKind::JobPolicy,
                namespace: Some("ci".into()),
                name: "builds".into(),
                uid: "p".into(),
            },
            limit: "concurrent-builds".into(),
            namespace: "ci".into(),
            job: job.into(),
            uid: format!("uid-{job}"),
            stored: false,
            owner: owner.map(|name| Owner {
                api_version: "batch/v1".into(),
                kind: "CronJob".into(),
                name: name.into(),
                uid: name.into(),
            }),
            message: "concurrent job limit reached".into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_first_is_told_to_all_three_at_once() {
        let (writes, dropped) = Series::default().offer(&refusal("a", Some("nightly")), Instant::now());
        let about: Vec<_> = writes
            .iter()
            .map(|write| match write {
                Write::First { told, .. } => {
                    let about = &told.regarding;
                    (about.kind.clone().unwrap(), about.name.clone().unwrap(), about.uid.clone())
                }
                Write::Count { .. } => panic!("not the first"),
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
    fn a_flood_is_one_write_per_ten_seconds() {
        let (mut series, start) = (Series::default(), Instant::now());
        let (mut firsts, mut counts) = (0, Vec::new());
        for n in 0..1000u32 {
            let now = start + Duration::from_millis(u64::from(n) * 30);
            for write in series.offer(&refusal("same", None), now).0 {
                match write {
                    Write::First { .. } => firsts += 1,
                    Write::Count { more, .. } => counts.push(more),
                }
            }
        }
        assert_eq!(firsts, 2, "policy and Job");
        assert!(counts.len() <= 2 * 3, "30 seconds: {counts:?}");
        let last = series.due(start + Duration::from_secs(60));
        counts.extend(last.iter().map(|write| match write {
            Write::Count { more, .. } => *more,
            Write::First { .. } => panic!("not the first"),
        }));
        assert_eq!((last.len(), counts.iter().sum::<i32>()), (2, 2 * 999), "each is counted once");
        assert!(series.due(start + Duration::from_secs(600)).is_empty());
        assert!(series.known.is_empty());
    }

    #[test]
    fn events_about_names_are_capped_per_namespace() {
        let (mut series, now) = (Series::default(), Instant::now());
        let mut written = 0;
        let mut dropped = 0;
        for n in 0..500 {
            let (writes, more) = series.offer(&refusal(&format!("job-{n}"), None), now);
            written += writes.len();
            dropped += more;
        }
        assert_eq!((written, dropped), (51, 450));
    }

    /// What two sinks write of it, each told by its own webhook a moment apart.
    #[test]
    fn two_sinks_tell_of_one_refusal_under_one_name() {
        let names = |refusal: &Refusal| -> Vec<(String, bool)> {
            let writes = Series::default().offer(refusal, Instant::now()).0;
            let name = |write: Write| match write {
                Write::First { told, counts } => (told.name, counts),
                Write::Count { .. } => panic!("not the first"),
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
    fn a_job_that_is_there_is_told_by_its_uid() {
        let mut stored = refusal("a", None);
        stored.stored = true;
        let (writes, _) = Series::default().offer(&stored, Instant::now());
        let Some(Write::First { told, counts: true }) = writes.last() else { panic!("{writes:?}") };
        assert_eq!(told.regarding.uid.as_deref(), Some("uid-a"));
        stored.decision = RefusalKind::Queued;
        assert_eq!(
            Series::default().offer(&stored, Instant::now()).0.len(),
            1,
            "the policy; itself by its place"
        );
    }

    #[test]
    fn a_cluster_policys_events_are_in_default() {
        let mut refusal = refusal("a", None);
        refusal.policy.kind = PolicyKind::ClusterJobPolicy;
        refusal.policy.namespace = None;
        let (writes, _) = Series::default().offer(&refusal, Instant::now());
        let Write::First { told, .. } = &writes[0] else { panic!() };
        assert_eq!((told.namespace.as_str(), told.regarding.namespace.clone()), ("default", None));
    }
}
