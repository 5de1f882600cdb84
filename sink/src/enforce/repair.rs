//! Heals Jobs that the webhook missed: they get the stamps that can still be set, and where they are too many for a limit
//! that queues, the newest of them wait.
//!
//! A Job is missed where it carries no account of stamping although a policy that selects it, and that asks for more than
//! refusals, was in force before it was created. What was there before a policy is left as it is, so that no change of a
//! policy ends what runs; nor does healing: a deadline or a number of retries that has passed already is left out.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        queued_entry,
        scope::{ScopeKey, group_of_job, scopes},
        snapshot::JobSnapshot,
        stamped_annotation::{self, StampedAnnotation},
    },
    keys,
    kube::error::{ApiError, call},
    names,
    policy::{
        effective::EffectivePolicy,
        limit::{Limit, WhenFull},
        parsed::Policy,
        range::{self, AbsentValue, ResolvedValue},
    },
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use crate::{
    jobs::patch::{self, Written},
    notify::recorder::{EventSpec, EventType, Recorder, job_reference},
    observe::store::Store,
};

/// Least time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A look without any change, for what a watch may have missed.
const ANYWAY: Duration = Duration::from_secs(30);
/// A Job that could not be healed waits so long.
const AGAIN: Duration = Duration::from_secs(30);
/// The API's default of `backoffLimit`, which cannot be told from an explicit 6.
const API_BACKOFF_LIMIT: i32 = 6;

/// What a missed Job gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Healing {
    /// `spec` of the patch.
    pub spec: Map<String, Value>,
    /// `metadata.labels`.
    pub labels: Map<String, Value>,
    /// `metadata.annotations`.
    pub annotations: Map<String, Value>,
    /// The account.
    pub text: StampedAnnotation,
}

/// What a missed Job gets from these policies, all of them in force before it was created, in order of precedence.
pub fn healing(job: &JobSnapshot, policies: &[&Arc<Policy>], now: Timestamp) -> Healing {
    let effective = EffectivePolicy::combine(policies.iter().copied(), &job.labels);
    let mut healing = Healing {
        spec: Map::new(),
        labels: Map::new(),
        annotations: Map::new(),
        text: StampedAnnotation::default(),
    };
    healing.ttl(job, &effective);
    healing.deadline(job, &effective, now);
    healing.backoff_limit(job, &effective);
    for (key, label) in effective.labels.iter().filter(|(key, _)| !job.labels.contains_key(*key)) {
        healing.labels.insert(key.clone(), label.value.clone().into());
        healing.text.set_label(key, &label.value, true, false, &label.policy);
    }
    let group = group_of_job(policies, job);
    if let (Some(group), Some(by)) = (&group, &effective.group) {
        healing
            .text
            .set(stamped_annotation::GROUP, format_args!("{} (by {}, {})", group.value, group.by, by.policy));
    }
    let group = group.map(|group| group.value);
    if job.labels.get(keys::GROUP) != group.as_ref() {
        healing.labels.insert(keys::GROUP.to_owned(), json!(group));
    }
    if healing.text.is_empty() {
        let by: Vec<String> = policies.iter().map(|policy| policy.reference.to_string()).collect();
        healing.text.set(stamped_annotation::NOTHING, format_args!("selected by {}", by.join(", ")));
    }
    // Nobody of ours wrote them.
    for key in [keys::QUEUED_AT, keys::STATUS, keys::RESULTS] {
        if job.annotations.contains_key(key) {
            healing.annotations.insert(key.to_owned(), Value::Null);
        }
    }
    healing
}

impl Healing {
    fn ttl(&mut self, job: &JobSnapshot, effective: &EffectivePolicy) {
        let settled = range::resolve(job.ttl.map(i64::from), &effective.ttl, AbsentValue::Exempt);
        let harvest = effective.results.as_ref().map(|results| i64::from(results.harvest_deadline_seconds));
        self.tell(stamped_annotation::TTL, &settled);
        let spec = match (settled.value, harvest) {
            (Some(wished), Some(deadline)) => {
                self.annotations.insert(keys::TTL.to_owned(), wished.to_string().into());
                Some(wished.max(deadline))
            }
            (wished, _) => wished,
        };
        if spec != job.ttl.map(i64::from) {
            self.spec.insert(stamped_annotation::TTL.to_owned(), json!(spec));
        }
    }

    fn deadline(&mut self, job: &JobSnapshot, effective: &EffectivePolicy, now: Timestamp) {
        let settled = range::resolve(job.deadline, &effective.deadline, AbsentValue::Unlimited);
        let Some(seconds) = settled.value.filter(|_| settled.changed()) else { return };
        let runs = job.started.map_or(0, |started| now.as_second() - started.as_second());
        if runs >= seconds {
            // Not in the words that are read back.
            self.text
                .set("no activeDeadlineSeconds", format_args!("{seconds} have passed already, it runs on"));
            return;
        }
        self.tell(stamped_annotation::DEADLINE, &settled);
        self.spec.insert(stamped_annotation::DEADLINE.to_owned(), seconds.into());
    }

    fn backoff_limit(&mut self, job: &JobSnapshot, effective: &EffectivePolicy) {
        // With backoffLimitPerIndex it is MaxInt32.
        let Some(present) = job.backoff_limit.filter(|limit| *limit != i32::MAX) else { return };
        let keeps = job
            .annotations
            .get(keys::KEEP)
            .is_some_and(|fields| fields.split(',').any(|field| field.trim() == stamped_annotation::BACKOFF));
        let default =
            effective.backoff_limit.default.as_ref().filter(|_| present == API_BACKOFF_LIMIT && !keeps);
        let mut settled =
            range::resolve(Some(i64::from(present)), &effective.backoff_limit, AbsentValue::Exempt);
        if let Some(default) = default {
            settled.value = Some(default.value);
            settled.source = range::ValueSource::Default(default.policy.clone());
        }
        let Some(limit) = settled.value.filter(|_| settled.changed()) else { return };
        if i64::from(job.failed_pods) > limit {
            self.text.set(
                "no backoffLimit",
                format_args!("{} retries are used already, it runs on", job.failed_pods),
            );
            return;
        }
        self.tell(stamped_annotation::BACKOFF, &settled);
        self.spec.insert(stamped_annotation::BACKOFF.to_owned(), limit.into());
    }

    fn tell(&mut self, field: &str, settled: &ResolvedValue) {
        if settled.changed() {
            self.text.set(field, settled);
        }
    }

    fn queue(&mut self, scope: &ScopeKey, now: Timestamp) {
        self.spec.insert("suspend".to_owned(), true.into());
        let since = crate::model::text::whole_seconds(now).to_string();
        self.annotations.insert(keys::QUEUED_AT.to_owned(), since.into());
        let what =
            format_args!("{}a slot of limit \"{}\" of {}", queued_entry::WAITS, scope.limit, scope.policy);
        self.text.set(stamped_annotation::QUEUED, what);
    }
}

/// A missed Job, the policies that should have stamped it, and where it takes slots.
struct Missed {
    job: Arc<JobSnapshot>,
    policies: Vec<Arc<Policy>>,
}

/// Heals for ever.
pub async fn keep(client: Client, store: Store, recorder: Recorder) {
    let mut changes = store.changes();
    let mut held: HashMap<String, Instant> = HashMap::new();
    loop {
        held.retain(|_, at| at.elapsed() < AGAIN);
        let missed = missed(&store, &held);
        if !missed.is_empty() {
            let excess = excess(&store, &missed);
            for Missed { job, policies } in &missed {
                let over = excess.get(&job.uid);
                match heal(&client, job, policies, over).await {
                    Ok(Some((now, text))) => {
                        store.put_job(now);
                        tracing::info!(job = job.key(), "stamped late: {text}");
                        tell(&recorder, job, &text, over).await;
                    }
                    // Changed or gone: the watch tells.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(job = job.key(), "stamping late: {error}; trying again");
                        held.insert(job.uid.clone(), Instant::now());
                    }
                }
            }
        }
        tokio::time::sleep(EVERY).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(ANYWAY) => {}
        }
    }
}

/// Whether nobody has stamped a Job that runs, or may run.
fn is_unstamped(job: &JobSnapshot) -> bool {
    !job.annotations.contains_key(keys::STAMPED)
        && job.finished.is_none()
        && job.deleting_since.is_none()
        && !job.is_managed_by_others()
}

fn missed(store: &Store, held: &HashMap<String, Instant>) -> Vec<Missed> {
    let jobs = store.jobs().into_iter().filter(|job| is_unstamped(job) && !held.contains_key(&job.uid));
    let mut since: Option<HashMap<String, Timestamp>> = None;
    jobs.filter_map(|job| {
        let since = since.get_or_insert_with(|| {
            let in_force = |entry: crate::model::policy_entry::PolicyEntry| {
                let current = entry.status.observed_generation == Some(entry.generation);
                Some((entry.reference.uid, entry.status.in_force_since.filter(|_| current)?.0))
            };
            store.entries().into_iter().filter_map(in_force).collect()
        });
        let mut policies = store.matching(&job)?;
        // Times have a resolution of one second.
        policies.retain(|policy| since.get(&policy.reference.uid).is_some_and(|since| job.created > *since));
        let untouched = policies.iter().all(|policy| policy.never_changes_jobs());
        (!untouched).then_some(Missed { job, policies })
    })
    .collect()
}

/// The newest of the missed Jobs that are too many for a limit, with that limit.
fn excess(store: &Store, missed: &[Missed]) -> HashMap<String, (ScopeKey, Limit)> {
    let mut active: HashMap<ScopeKey, u32> = HashMap::new();
    for job in store.unfinished().iter().filter(|job| job.is_active()) {
        let Some(policies) = store.matching(job) else { continue };
        for (scope, _) in scopes(&policies.iter().collect::<Vec<_>>(), job) {
            *active.entry(scope).or_default() += 1;
        }
    }
    let mut newest: Vec<&Missed> = missed.iter().filter(|missed| missed.job.is_active()).collect();
    newest.sort_by(|a, b| (b.job.created, &b.job.uid).cmp(&(a.job.created, &a.job.uid)));
    let mut excess = HashMap::new();
    for Missed { job, policies } in newest {
        let taken = scopes(&policies.iter().collect::<Vec<_>>(), job);
        let over = |(scope, limit): &&(ScopeKey, &Limit)| {
            active.get(scope).copied().unwrap_or_default() > limit.max_active_jobs
        };
        // One that queues helps; of one that rejects there is only something to tell.
        let mut full: Vec<_> = taken.iter().filter(over).cloned().collect();
        full.sort_by_key(|(_, limit)| limit.when_full != WhenFull::Queue);
        let Some((scope, limit)) = full.first() else { continue };
        // Who waits takes no slot anywhere. Who runs on is the one too many where it was told of; the older ones are not.
        let relieved = if limit.when_full == WhenFull::Queue { &taken } else { &full };
        for (scope, _) in relieved {
            active.entry(scope.clone()).and_modify(|n| *n = n.saturating_sub(1));
        }
        excess.insert(job.uid.clone(), (scope.clone(), (*limit).clone()));
    }
    excess
}

/// Writes onto the very version that was looked at; what was done, for people.
async fn heal(
    client: &Client,
    job: &JobSnapshot,
    policies: &[Arc<Policy>],
    over: Option<&(ScopeKey, Limit)>,
) -> Result<Option<(JobSnapshot, String)>, ApiError> {
    let now = Timestamp::now();
    let mut healing = healing(job, &policies.iter().collect::<Vec<_>>(), now);
    if let Some((scope, limit)) = over
        && limit.when_full == WhenFull::Queue
    {
        healing.queue(scope, now);
    }
    let text = healing.text.text();
    healing.annotations.insert(keys::STAMPED.to_owned(), text.clone().into());
    let patch = Patch::Merge(json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "labels": healing.labels,
            "annotations": healing.annotations,
        },
        "spec": healing.spec,
    }));
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let what = format!("stamp job {}", job.key());
    match patch::outcome_of(call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await)? {
        Written::Done(now) => Ok(Some((*now, text))),
        Written::Changed | Written::Gone => Ok(None),
    }
}

async fn tell(recorder: &Recorder, job: &JobSnapshot, text: &str, over: Option<&(ScopeKey, Limit)>) {
    let (kind, more) = match over {
        Some((scope, limit)) if limit.when_full == WhenFull::Reject => {
            let more = format!(
                ". It is one too many for limit \"{}\" of {} (max allowed: {}) and runs on; others wait until there is room",
                scope.limit, scope.policy, limit.max_active_jobs
            );
            (EventType::Warning, more)
        }
        Some(_) => (EventType::Warning, ". It was suspended: no slot was left".to_owned()),
        None => (EventType::Normal, String::new()),
    };
    let told = EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, keys::REASON_HEALED),
        event_type: kind,
        reason: keys::REASON_HEALED,
        action: "Stamped",
        note: format!("The webhook missed this Job, it was stamped late: {text}{more}"),
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: None,
    };
    if let Err(error) = recorder.publish(&told).await {
        tracing::warn!(job = job.key(), "an Event about its late stamp: {error}");
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::{spec::JobPolicy, status::PolicyStatus};

    use super::*;
    use crate::model::policy_entry::PolicyEntry;

    fn policy(spec: Value) -> Arc<Policy> {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "p", "namespace": "ci", "uid": "p"}, "spec": spec,
        }))
        .unwrap();
        Arc::new(Policy::namespaced(&policy).unwrap())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn heal(job: &JobSnapshot, spec: Value) -> Healing {
        healing(job, &[&policy(spec)], at(1000))
    }

    #[test]
    fn what_can_still_be_set_is_set_in_the_webhooks_words() {
        let job = JobSnapshot { backoff_limit: Some(6), ttl: Some(9), ..JobSnapshot::default() };
        let stamp = json!({"ttlSecondsAfterFinished": {"max": 5}, "activeDeadlineSeconds": {"default": 60},
            "backoffLimit": {"default": 0}, "labels": {"team": "x"}});
        let healed = heal(&job, json!({"stamp": stamp, "results": {"harvestDeadlineSeconds": 100}}));
        assert_eq!(
            Value::Object(healed.spec),
            json!({"ttlSecondsAfterFinished": 100, "activeDeadlineSeconds": 60, "backoffLimit": 0})
        );
        assert_eq!(Value::Object(healed.annotations), json!({keys::TTL: "5"}));
        assert_eq!(Value::Object(healed.labels), json!({"team": "x"}));
        assert_eq!(
            healed.text.text(),
            "ttlSecondsAfterFinished: 9 -> 5 (maximum of JobPolicy ci/p); activeDeadlineSeconds: unset -> 60 (default \
             of JobPolicy ci/p); backoffLimit: 6 -> 0 (default of JobPolicy ci/p); label team: x on the Job (JobPolicy ci/p)"
        );
    }

    #[test]
    fn nothing_that_runs_is_ended() {
        let job = JobSnapshot {
            backoff_limit: Some(6),
            failed_pods: 2,
            started: Some(at(100)),
            ..JobSnapshot::default()
        };
        let stamp = json!({"activeDeadlineSeconds": {"max": 900}, "backoffLimit": {"default": 1}});
        let healed = heal(&job, json!({"stamp": stamp}));
        assert!(healed.spec.is_empty(), "{:?}", healed.spec);
        assert!(healed.text.text().contains("900 have passed already, it runs on"), "{}", healed.text);
    }

    /// By uid, the limit that each is told of.
    fn too_many(limits: &Value) -> Vec<(String, String)> {
        let store = Store::default();
        store.put_namespace("ci", Default::default());
        let policy = policy(json!({"limits": limits}));
        store.put_policy(PolicyEntry {
            reference: policy.reference.clone(),
            generation: 1,
            policy: Ok(policy.clone()),
            status: PolicyStatus::default(),
        });
        let missed = |n: i64| {
            let (name, uid) = (n.to_string(), n.to_string());
            let job =
                JobSnapshot { namespace: "ci".into(), name, uid, created: at(n), ..JobSnapshot::default() };
            store.put_job(job.clone());
            Missed { job: Arc::new(job), policies: vec![policy.clone()] }
        };
        let missed: Vec<Missed> = (1..=4).map(missed).collect();
        let excess = excess(&store, &missed).into_iter();
        let mut told: Vec<_> = excess.map(|(uid, (scope, _))| (uid, scope.limit)).collect();
        told.sort();
        told
    }

    #[test]
    fn only_the_newest_are_too_many() {
        let told = |told: &[(&str, &str)]| -> Vec<(String, String)> {
            told.iter().map(|(uid, limit)| ((*uid).to_owned(), (*limit).to_owned())).collect()
        };
        let rejects = json!({"name": "r", "maxActiveJobs": 3});
        let queues = json!({"name": "q", "maxActiveJobs": 2, "whenFull": "Queue"});
        assert_eq!(too_many(&json!([rejects])), told(&[("4", "r")]));
        assert_eq!(too_many(&json!([queues])), told(&[("3", "q"), ("4", "q")]));
        assert_eq!(too_many(&json!([rejects, queues])), told(&[("3", "q"), ("4", "q")]));
        let few = json!({"name": "f", "maxActiveJobs": 1});
        assert_eq!(too_many(&json!([few, queues])), told(&[("2", "f"), ("3", "q"), ("4", "q")]));
    }

    #[test]
    fn forged_marks_go_and_others_jobs_are_left_alone() {
        let mut job = JobSnapshot::default();
        job.labels.insert(keys::GROUP.into(), "forged".into());
        job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
        let healed = heal(&job, json!({}));
        assert_eq!(Value::Object(healed.labels), json!({keys::GROUP: null}));
        assert_eq!(Value::Object(healed.annotations), json!({keys::QUEUED_AT: null}));
        assert!(healed.text.text().starts_with("nothing to set: selected by JobPolicy ci/p"));
        assert!(is_unstamped(&job));
        job.labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        assert!(!is_unstamped(&job));
    }
}
