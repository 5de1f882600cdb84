//! Starts queued Jobs when there is room: first in, first out per scope, skipping a head whose other scope is full.
//!
//! This only proposes. `/validate` decides each start as it decides each create, so that a picture that is behind can
//! cause a refusal and a later try, never one Job too many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt, channel::mpsc, stream};
use jiff::Timestamp;
use job_handler_shared::{
    job::{
        queued_entry,
        scope::{ScopeKey, scopes},
        snapshot::{JobSnapshot, JobState},
    },
    keys,
    kube::error::{ApiError, call},
    ledger::refusal,
    names,
    process::jitter::full_jitter,
    text::human_seconds,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    notify::recorder::{EventSpec, EventType, Recorder, job_reference},
    observe::store::Store,
    queueing::{
        failure_backoff::{self, Waits},
        position_events::{self, Line, line},
        slots::Counted,
    },
};

/// Between two looks, at least: what changes meanwhile is looked at together.
const LEAST: Duration = Duration::from_millis(20);
/// The same where a look itself takes long, as with very many Jobs: so many times as long as it took, but no longer than
/// [`MOST`].
const SHARE: u32 = 9;
/// See [`SHARE`].
const MOST: Duration = Duration::from_millis(500);
/// A look without any change, for what a watch may have missed.
const ANYWAY: Duration = Duration::from_secs(5);
/// A Job whose start was refused waits this long (and up to half as long again).
const REFUSED: Duration = Duration::from_secs(5);
/// The first pause where a limit was full although there seemed to be room; it doubles up to [`REFUSED`].
const FULL_FIRST: Duration = Duration::from_secs(1);
/// So long after its pause it is remembered how often a Job was refused.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Starts per look; each of them is a change that causes another.
const AT_ONCE: usize = 50;
/// Events at a time; they are written beside the starts, so that nobody's start waits for somebody else's Event.
const TELLING: usize = 8;
/// Events that may wait to be written, before the starts wait for them.
const UNTOLD: usize = 1024;
/// Namespaces that are worked on at a time. Within one, starts are made one after the other, so that the first stays
/// first.
const NAMESPACES: usize = 16;

/// What a Job's last refusal means for those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// There was no slot after all, or nobody could say: the next one is its own, and no younger one takes it.
    Reserves,
    /// It may not start for a reason of its own (its group waits after failures, others refuse it): it is passed by.
    PassedBy,
}

impl Held {
    /// What follows from how a start failed.
    pub fn after(error: &ApiError) -> Self {
        match error {
            ApiError::Refused { code: 403, message, .. }
                if [refusal::LIMIT_REACHED, refusal::DUPLICATE_JOB]
                    .iter()
                    .any(|text| message.contains(text)) =>
            {
                Self::Reserves
            }
            error if error.is_transient() => Self::Reserves,
            _ => Self::PassedBy,
        }
    }
}

/// The Jobs to start now, in order. `jobs` are all that are not finished; `held` tells of those that wait after a refusal.
pub fn plan(jobs: &[Counted], held: impl Fn(&str) -> Option<Held>) -> Vec<Arc<JobSnapshot>> {
    let mut active: HashMap<&ScopeKey, u32> = HashMap::new();
    for (_, scopes) in jobs.iter().filter(|(job, _)| job.is_active()) {
        for (scope, _) in scopes {
            *active.entry(scope).or_default() += 1;
        }
    }
    let mut queued: Vec<(&Counted, Option<Held>)> = jobs
        .iter()
        .filter(|(job, _)| {
            job.is_queued()
                && job.state() == JobState::Suspended
                && job.deleting_since.is_none()
                && !job.is_managed_by_others()
        })
        .map(|counted| (counted, held(&counted.0.uid)))
        .filter(|(_, held)| *held != Some(Held::PassedBy))
        .collect();
    queued.sort_by(|((a, _), _), ((b, _), _)| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
    let mut start = Vec::new();
    for ((job, scopes), held) in queued {
        let room = scopes.iter().all(|(scope, max)| active.get(scope).copied().unwrap_or_default() < *max);
        if room {
            for (scope, _) in scopes {
                *active.entry(scope).or_default() += 1;
            }
            if held.is_none() {
                start.push(job.clone());
            }
        }
    }
    start
}

/// A Job that waits after a refusal.
#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    times: u32,
    held: Held,
}

impl Wait {
    fn after(error: &ApiError, before: Option<&Self>, now: Instant) -> Self {
        let held = Held::after(error);
        let times = before.map_or(0, |wait| wait.times.saturating_add(1));
        let pause = match (held, error) {
            (Held::Reserves, ApiError::Refused { code: 403, .. }) => {
                FULL_FIRST.saturating_mul(1 << times.min(8)).min(REFUSED)
            }
            _ => REFUSED,
        };
        Self { until: now + pause + full_jitter(pause / 2), times, held }
    }
}

/// Starts queued Jobs for ever.
pub async fn keep(client: Client, store: Store, recorder: Recorder) {
    let (events, untold) = mpsc::channel(UNTOLD);
    let telling = untold.for_each_concurrent(TELLING, |told: EventSpec| {
        let recorder = recorder.clone();
        async move {
            if let Err(error) = recorder.publish(&told).await {
                let (namespace, event) = (&told.namespace, &told.name);
                tracing::warn!("the Event {namespace}/{event} about a queued Job: {error}");
            }
        }
    });
    tokio::select! {
        () = starting(client, store, events) => {}
        () = telling => {}
    }
}

async fn starting(client: Client, store: Store, mut events: mpsc::Sender<EventSpec>) {
    let mut changes = store.changes();
    let mut waits: HashMap<String, Wait> = HashMap::new();
    let mut told = Line::default();
    loop {
        changes.borrow_and_update();
        let now = Instant::now();
        waits.retain(|_, wait| wait.until + REMEMBERED > now);
        let jobs = counted(&store);
        let backoffs = backoffs(&store, &jobs);
        let held = |uid: &str| match backoffs.contains_key(uid) {
            true => Some(Held::PassedBy),
            false => waits.get(uid).filter(|wait| wait.until > now).map(|wait| wait.held),
        };
        let due = plan(&jobs, held).into_iter().take(AT_ONCE);
        let took = now.elapsed();
        let Outcome { started, refused } = start(&client, &store, due).await;
        let jobs = if started.is_empty() { jobs } else { counted(&store) };
        let waiting = line(&jobs, |job| backoffs.get(&job.uid).cloned());
        let due = told.due(waiting, Instant::now());
        let due = due.iter().map(|(job, what)| position_events::told(job, what));
        for told in started.iter().map(|job| started_event(job)).chain(due) {
            if events.send(told).await.is_err() {
                return;
            }
        }
        for (uid, error) in refused {
            let wait = Wait::after(&error, waits.get(&uid), Instant::now());
            waits.insert(uid, wait);
        }
        tokio::time::sleep((took * SHARE).clamp(LEAST, MOST)).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(next(&backoffs).min(ANYWAY)) => {}
        }
    }
}

/// Queued Jobs whose group waits after failures.
fn backoffs(store: &Store, jobs: &[Counted]) -> HashMap<String, Waits> {
    let now = Timestamp::now();
    let queued = jobs.iter().filter(|(job, _)| job.is_queued());
    queued.filter_map(|(job, _)| Some((job.uid.clone(), failure_backoff::waits(store, job, now)?))).collect()
}

/// How long until the first of them may start.
fn next(backoffs: &HashMap<String, Waits>) -> Duration {
    let until = backoffs.values().map(|waits| waits.until).min();
    let left = until.map(|until| until.duration_since(Timestamp::now()).max(jiff::SignedDuration::ZERO));
    left.and_then(|left| Duration::try_from(left).ok()).unwrap_or(ANYWAY)
}

/// What became of starts.
#[derive(Default)]
struct Outcome {
    started: Vec<Arc<JobSnapshot>>,
    refused: Vec<(String, ApiError)>,
}

impl Extend<Self> for Outcome {
    fn extend<T: IntoIterator<Item = Self>>(&mut self, outcomes: T) {
        for Self { started, refused } in outcomes {
            self.started.extend(started);
            self.refused.extend(refused);
        }
    }
}

/// Starts these: in order within a namespace, where the first that gets no answer is the last that is tried, so that a
/// webhook that does not answer costs one call's time and not fifty.
async fn start(client: &Client, store: &Store, jobs: impl Iterator<Item = Arc<JobSnapshot>>) -> Outcome {
    let mut namespaces: BTreeMap<String, Vec<Arc<JobSnapshot>>> = BTreeMap::new();
    jobs.for_each(|job| namespaces.entry(job.namespace.clone()).or_default().push(job));
    let in_order = |jobs: Vec<Arc<JobSnapshot>>| async move {
        let mut outcome = Outcome::default();
        for job in jobs {
            match release(client, &job).await {
                Ok(Some(released)) => {
                    tracing::info!(job = job.key(), "started: there is room");
                    // What the watch will say, said before the next look counts.
                    store.put_job(released);
                    outcome.started.push(job);
                }
                // Changed or gone: the watch tells.
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(job = job.key(), "stays queued: {error}");
                    let answered = !matches!(error, ApiError::Timeout { .. } | ApiError::Broken { .. });
                    outcome.refused.push((job.uid.clone(), error));
                    if !answered {
                        break;
                    }
                }
            }
        }
        outcome
    };
    stream::iter(namespaces.into_values()).map(in_order).buffer_unordered(NAMESPACES).collect().await
}

fn started_event(job: &JobSnapshot) -> EventSpec {
    let slot = stamped_text(job).and_then(queued_entry::waits_for).unwrap_or("a slot");
    let waited = waited(job, Timestamp::now());
    let note = match slot.starts_with("a slot") {
        true => format!("{slot} was free after {waited}"),
        false => format!("it waited {waited} for {slot}"),
    };
    EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, keys::REASON_STARTED),
        event_type: EventType::Normal,
        reason: keys::REASON_STARTED,
        action: "Started",
        note,
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: None,
    }
}

fn stamped_text(job: &JobSnapshot) -> Option<&str> {
    job.annotations.get(keys::STAMPED).map(String::as_str)
}

/// How long it has been queued, for people.
fn waited(job: &JobSnapshot, now: Timestamp) -> String {
    let since = job.annotations.get(keys::QUEUED_AT).and_then(|text| text.parse::<Timestamp>().ok());
    human_seconds(now.as_second() - since.unwrap_or(job.created).as_second())
}

/// All Jobs that are not finished, with their scopes; none where none is queued.
fn counted(store: &Store) -> Vec<Counted> {
    let jobs = store.unfinished();
    if !jobs.iter().any(|job| job.is_queued()) {
        return Vec::new();
    }
    jobs.into_iter()
        .filter_map(|job| {
            let policies = store.matching(&job)?;
            let policies: Vec<_> = policies.iter().collect();
            let scopes = scopes(&policies, &job).into_iter().map(|(key, limit)| (key, limit.max_active_jobs));
            let scopes = scopes.collect();
            Some((job, scopes))
        })
        .collect()
}

/// Un-suspends the very version that was looked at, and takes the mark off, so that nobody starts it twice: a Job that a
/// person suspends later stays so. What it says of itself is then that it has waited.
async fn release(client: &Client, job: &JobSnapshot) -> Result<Option<JobSnapshot>, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let text = stamped_text(job).map(|text| queued_entry::started(text, &waited(job, Timestamp::now())));
    let patch = Patch::Merge(json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "annotations": {keys::QUEUED_AT: null, keys::STAMPED: text},
        },
        "spec": {"suspend": false},
    }));
    match call(&format!("start job {}", job.key()), api.patch(&job.name, &PatchParams::default(), &patch))
        .await
    {
        Ok(started) => Ok(Some(JobSnapshot::from(&started))),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{
        job::scope::ScopeDomain,
        policy::reference::{PolicyKind, PolicyRef},
    };

    use super::*;

    fn scope(domain: ScopeDomain) -> ScopeKey {
        let policy =
            PolicyRef { kind: PolicyKind::JobPolicy, namespace: None, name: "p".into(), uid: "p".into() };
        ScopeKey { policy, limit: "l".into(), domain }
    }

    fn job(uid: &str, queued: bool, places: &[(&str, u32)]) -> Counted {
        let mut job = JobSnapshot { uid: uid.into(), suspended: queued, ..JobSnapshot::default() };
        if queued {
            job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            job.annotations.insert(keys::STAMPED.into(), "queued: waits for a slot".into());
        }
        let place = |name: &str| match name {
            "cluster" => ScopeDomain::Cluster,
            name => ScopeDomain::Namespace(name.into()),
        };
        (Arc::new(job), places.iter().map(|(name, max)| (scope(place(name)), *max)).collect())
    }

    fn started(jobs: &[Counted]) -> Vec<String> {
        let held = |uid: &str| match uid {
            "full" => Some(Held::Reserves),
            "held" => Some(Held::PassedBy),
            _ => None,
        };
        plan(jobs, held).iter().map(|job| job.uid.clone()).collect()
    }

    #[test]
    fn first_in_first_out_until_it_is_full() {
        let jobs = [
            job("c", true, &[("ci", 3)]),
            job("a", true, &[("ci", 3)]),
            job("b", true, &[("ci", 3)]),
            job("runs", false, &[("ci", 3)]),
        ];
        assert_eq!(started(&jobs), ["a", "b"]);
    }

    #[test]
    fn a_head_whose_other_scope_is_full_is_skipped() {
        let jobs = [
            job("runs", false, &[("a", 1), ("cluster", 2)]),
            job("1", true, &[("a", 1), ("cluster", 2)]),
            job("2", true, &[("b", 1), ("cluster", 2)]),
            job("3", true, &[("b", 1), ("cluster", 2)]),
        ];
        assert_eq!(started(&jobs), ["2"]);
    }

    #[test]
    fn the_slot_of_one_that_was_told_full_is_nobody_elses() {
        let one = |uid: &str| job(uid, true, &[("ci", 1)]);
        assert!(started(&[one("full"), one("younger")]).is_empty());
        assert_eq!(started(&[one("held"), one("younger")]), ["younger"]);
        assert_eq!(started(&[one("full"), job("elsewhere", true, &[("b", 1)])]), ["elsewhere"]);
    }

    #[test]
    fn only_a_full_limit_or_silence_reserves() {
        let refused = |code: u16, message: &str| ApiError::Refused {
            what: "start".into(),
            code,
            reason: String::new(),
            message: message.into(),
        };
        for (error, held) in [
            (refused(403, "denied: concurrent job limit reached: 1 active"), Held::Reserves),
            (refused(403, "denied: duplicate job: a of group 7"), Held::Reserves),
            (refused(503, "job limits cannot be checked now"), Held::Reserves),
            (ApiError::Timeout { what: "start".into(), after: Duration::from_secs(10) }, Held::Reserves),
            (refused(403, "denied: failure backoff: group 7"), Held::PassedBy),
            (refused(403, "denied: another webhook does not like it"), Held::PassedBy),
            (refused(422, "invalid"), Held::PassedBy),
        ] {
            assert_eq!(Held::after(&error), held, "{error}");
        }
        let full = refused(403, refusal::LIMIT_REACHED);
        let now = Instant::now();
        let first = Wait::after(&full, None, now);
        assert!(first.until <= now + Duration::from_millis(1500), "its turn comes soon");
        let fifth = (0..4).fold(first, |wait, _| Wait::after(&full, Some(&wait), now));
        assert!(fifth.until >= now + REFUSED);
    }

    /// A start that gets no answer holds up its namespace for one call, and no other.
    #[tokio::test(start_paused = true)]
    async fn silence_in_one_namespace_is_waited_for_once() {
        type Body = kube::client::Body;
        let service = tower::service_fn(|request: http::Request<Body>| async move {
            if request.uri().path().contains("/dead/") {
                std::future::pending::<()>().await;
            }
            let kind = if request.uri().path().contains("/jobs/") { "Job" } else { "Event" };
            let job = json!({"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": "x", "uid": "x"},
                "regarding": {}, "eventTime": null});
            let body = Body::from(serde_json::to_vec(&job).unwrap());
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        });
        let client = Client::new(service, "default");
        let jobs = (0..50).map(|n| {
            let namespace = if n % 2 == 0 { "dead" } else { "lives" };
            let (mut job, _) = job(&n.to_string(), true, &[]);
            Arc::make_mut(&mut job).namespace = namespace.into();
            Arc::make_mut(&mut job).name = format!("j{n}");
            job
        });
        let begun = tokio::time::Instant::now();
        let Outcome { started, refused } = start(&client, &Store::default(), jobs).await;
        assert_eq!(started.len(), 25);
        assert_eq!(refused.iter().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["0"]);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[test]
    fn only_our_own_are_started() {
        let mut foreign = job("kueue", true, &[]);
        Arc::make_mut(&mut foreign.0).labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        let mut by_hand = job("by-hand", true, &[]);
        Arc::make_mut(&mut by_hand.0).annotations.clear();
        let mut going = job("going", true, &[]);
        Arc::make_mut(&mut going.0).deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        let mut ending = job("ending", true, &[]);
        Arc::make_mut(&mut ending.0).terminating_pods = 1;
        let mut copied = job("copied-mark", true, &[]);
        Arc::make_mut(&mut copied.0).annotations.remove(keys::STAMPED);
        assert!(started(&[foreign, by_hand, copied, going, ending, job("held", true, &[])]).is_empty());
        assert_eq!(started(&[job("no-limit-any-more", true, &[])]), ["no-limit-any-more"]);
    }
}
