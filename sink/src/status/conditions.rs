//! What each policy's status tells. Pure; [`crate::status::writer`] writes it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        group::GroupId,
        snapshot::{JobSnapshot, JobState},
    },
    keys,
    policy::{
        limit::{Limit, Scope},
        results::StorageType,
        spec::PolicySpec,
        status::{ENFORCED, LastRefusal, LimitStatus, OVER_LIMIT, PolicyStatus, READY, ResultsStatus},
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    enforce::webhook_entries::Kept,
    model::{policy_entry::PolicyEntry, replica::Replica},
};

/// A Job, and the group that the policies together give it.
pub type Selected = (Arc<JobSnapshot>, Option<GroupId>);

/// What a status depends on besides the policy itself.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The Jobs that the policy selects and that are not finished, each with its group.
    pub jobs: &'a [Selected],
    /// Webhook replicas by name.
    pub replicas: &'a BTreeMap<String, Replica>,
    /// The webhook entries.
    pub entries: &'a Kept,
    /// Grants whose Job nobody has seen yet, by limit and scope.
    pub pending: &'a BTreeMap<(String, String), u32>,
    /// The last refusal that is known.
    pub refusal: Option<LastRefusal>,
    /// Some enforced policy that can select the same Jobs names a group.
    pub grouped: bool,
    /// Receivers of CloudEvents that are configured.
    pub sinks: &'a BTreeSet<String>,
    /// The results that it asked for.
    pub results: ResultsStatus,
    /// Why results cannot be held in Secrets, where they cannot.
    pub no_secrets: Option<String>,
    /// The policy lives where Jobs are never touched.
    pub excluded: bool,
    /// Wall clock, for conditions that change.
    pub now: Timestamp,
    /// Our own clock, for the replicas' Leases.
    pub clock: Instant,
}

/// The status that a policy should have.
pub fn of(entry: &PolicyEntry, situation: &Situation<'_>) -> PolicyStatus {
    let before = &entry.status;
    let spec = entry.policy.as_ref().ok().map(|policy| &policy.spec);
    let (ready, why, message) = readiness(entry, situation);
    let (full, full_why, full_message) = spec.map_or_else(
        || (false, "Unreadable", "this policy cannot be read".to_owned()),
        |spec| completeness(spec, situation),
    );
    let limits: Vec<LimitStatus> = spec.map_or_else(Vec::new, |spec| {
        spec.limits.iter().map(|limit| fullest(limit, situation.jobs, situation.pending)).collect()
    });
    let usage: Vec<String> = limits.iter().map(|limit| format!("{}/{}", limit.active, limit.max)).collect();
    let count = |wanted: JobState| {
        let jobs = situation.jobs.iter().filter(|(job, _)| job.state() == wanted).count();
        u32::try_from(jobs).ok()
    };
    let mut conditions = vec![
        condition(READY, ready, why, message, entry.generation, before, situation.now),
        condition(ENFORCED, full, full_why, full_message, entry.generation, before, situation.now),
    ];
    if entry.policy.as_ref().is_ok_and(|policy| policy.enforced()) && !limits.is_empty() {
        let (over, why, message) = excess(&limits);
        conditions.push(condition(OVER_LIMIT, over, why, message, entry.generation, before, situation.now));
    }
    let queued = situation.jobs.iter().filter(|(job, _)| job.is_queued()).count();
    PolicyStatus {
        observed_generation: Some(entry.generation),
        conditions,
        usage: Some(if usage.is_empty() { "-".to_owned() } else { usage.join(", ") }),
        limits,
        pending_jobs: count(JobState::Suspended),
        queued_jobs: u32::try_from(queued).ok(),
        running_jobs: count(JobState::Active),
        in_force_since: in_force_since(entry, ready, situation.now),
        results: spec
            .filter(|spec| spec.results.is_some() || situation.results.stored > 0)
            .map(|_| situation.results.clone()),
        last_refusal: newer(situation.refusal.clone(), before.last_refusal.clone()),
    }
}

/// Since when this generation has been in force: also while it is not for a moment, as when the webhook is away.
fn in_force_since(entry: &PolicyEntry, ready: bool, now: Timestamp) -> Option<Time> {
    let before = &entry.status;
    let known = before.in_force_since.clone();
    known
        .filter(|_| before.observed_generation == Some(entry.generation))
        .or_else(|| ready.then_some(Time(now)))
}

fn newer(a: Option<LastRefusal>, b: Option<LastRefusal>) -> Option<LastRefusal> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.time.0 >= b.time.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}

/// Whether every live webhook replica enforces this revision, and the entry is in place.
fn readiness(entry: &PolicyEntry, situation: &Situation<'_>) -> (bool, &'static str, String) {
    let generation = entry.generation;
    let policy = match &entry.policy {
        Ok(policy) => policy,
        Err(error) => return (false, "Unreadable", error.clone()),
    };
    if situation.excluded {
        let message = "this namespace is never touched; move the policy to the Jobs' namespace";
        return (false, "ExcludedNamespace", message.to_owned());
    }
    let live: Vec<_> =
        situation.replicas.iter().filter(|(_, replica)| replica.is_live(situation.clock)).collect();
    if live.is_empty() {
        return (false, "NoWebhook", "no webhook replica is alive: see `kubectl get leases -l job-handler/component=webhook` in job-handler's namespace".to_owned());
    }
    let withheld =
        live.iter().find_map(|(name, replica)| Some((name, replica.withheld.get(&entry.reference.uid)?)));
    if let Some((replica, why)) = withheld {
        return (
            false,
            "LedgerMissing",
            format!("webhook replica {replica} cannot decide by its limits: {why}"),
        );
    }
    let behind: Vec<&str> = live
        .iter()
        .filter(|(_, replica)| replica.enforces.get(&entry.reference.uid) != Some(&generation))
        .map(|(name, _)| name.as_str())
        .collect();
    if !behind.is_empty() {
        let message = format!(
            "waiting for {} of {} webhook replicas to take up generation {generation}: {}",
            behind.len(),
            live.len(),
            behind.join(", ")
        );
        return (false, "WebhookBehind", message);
    }
    if policy.has_limits() && situation.entries.written.get(&entry.reference.uid) != Some(&generation) {
        let why = situation.entries.fault.as_deref().unwrap_or("it is being written");
        return (false, "EntryMissing", format!("waiting for the webhook entry of its limits: {why}"));
    }
    let replicas = live.len();
    let s = if replicas == 1 { "" } else { "s" };
    let message = if policy.enforced() {
        format!(
            "{replicas} webhook replica{s} enforce{} generation {generation}",
            if replicas == 1 { "s" } else { "" }
        )
    } else {
        format!(
            "mode Warn: {replicas} webhook replica{s} know{} generation {generation}; what it would do is told, nothing is changed, refused or deleted",
            if replicas == 1 { "s" } else { "" }
        )
    };
    (true, if policy.enforced() { "Enforced" } else { "Warns" }, message)
}

/// Whether all that the policy says has an effect, and what has none.
fn completeness(spec: &PolicySpec, situation: &Situation<'_>) -> (bool, &'static str, String) {
    let mut missing: Vec<(&'static str, String)> = Vec::new();
    missing.extend(withheld(spec, situation.no_secrets.as_deref()).map(|why| ("NoSecrets", why)));
    let ungrouped = if situation.grouped { Vec::new() } else { by_group(spec) };
    if !ungrouped.is_empty() {
        let why = format!(
            "limit {} counts groups, but no enforced policy that selects these Jobs names one: it holds nobody \
             back. Set spec.group",
            ungrouped.join(", ")
        );
        missing.push(("NoGroup", why));
    }
    missing.extend(unsent(spec, situation.sinks).map(|why| ("NotTold", why)));
    let Some((reason, _)) = missing.first() else {
        return (true, "Complete", "every field of this policy is acted on".to_owned());
    };
    let reason = *reason;
    (false, reason, missing.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "))
}

/// Results that are to be in Secrets and cannot be.
fn withheld(spec: &PolicySpec, no_secrets: Option<&str>) -> Option<String> {
    let wanted = spec.results.as_ref().is_some_and(|results| results.storage_type == StorageType::Secret);
    no_secrets.filter(|_| wanted).map(|why| {
        format!(
            "results.storageType Secret: {why}. Until then results are ConfigMaps that hold neither logs nor termination \
             messages"
        )
    })
}

/// CloudEvents that nobody gets.
fn unsent(spec: &PolicySpec, sinks: &BTreeSet<String>) -> Option<String> {
    let names = spec.cloud_event_sinks.iter().map(|sink| &sink.name);
    let unknown: Vec<String> =
        names.filter(|name| !sinks.contains(*name)).map(|n| format!("\"{n}\"")).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = sinks.iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Some(format!(
            "cloudEventSinks {} are not in the sink's configuration (ConfigMap {}; there: {known}): what they are to be \
             told of finished Jobs waits, refusals are not told",
            unknown.join(", "),
            keys::SINK_CONFIGURATION
        ));
    }
    (!spec.cloud_event_sinks.is_empty() && spec.results.is_none()).then(|| {
        "cloudEventSinks are told of finished Jobs from their results, and this policy asks for none: set \
         spec.results, with logs.mode None for the least"
            .to_owned()
    })
}

/// Names of the limits that count groups.
fn by_group(spec: &PolicySpec) -> Vec<String> {
    let limits = spec.limits.iter().filter(|limit| limit.scope == Scope::Group);
    limits.map(|limit| format!("\"{}\"", limit.name)).collect()
}

/// Whether a scope holds more than its limit allows. Each limit is shown in its fullest scope, so that where that one
/// holds no more, none does.
fn excess(limits: &[LimitStatus]) -> (bool, &'static str, String) {
    let over: Vec<String> = limits
        .iter()
        .filter(|limit| limit.active > limit.max)
        .map(|limit| {
            let place = limit.fullest.as_deref().unwrap_or("-");
            format!(
                "limit \"{}\" in {place}: {} active jobs, max allowed: {}",
                limit.name, limit.active, limit.max
            )
        })
        .collect();
    if over.is_empty() {
        return (false, "WithinLimits", "no scope holds more active Jobs than its limit allows".to_owned());
    }
    let message = format!(
        "{}; they were there before the limit, were relabelled into it, or were created while its webhook entry was \
         missing. They count on, and no other starts until there is room",
        over.join(", ")
    );
    (true, "TooMany", message)
}

/// How full a limit is, in the scope that is fullest by (active, waiting, granted).
fn fullest(limit: &Limit, jobs: &[Selected], pending: &BTreeMap<(String, String), u32>) -> LimitStatus {
    let mut scopes: HashMap<String, (u32, u32, u32)> = HashMap::new();
    for (job, group) in jobs {
        let Some(scope) = scope_of(limit.scope, job, group.as_ref()) else { continue };
        let counts = scopes.entry(scope).or_default();
        counts.0 += u32::from(job.is_active());
        counts.1 += u32::from(job.is_queued());
    }
    for ((name, scope), granted) in pending {
        if *name == limit.name {
            scopes.entry(scope.clone()).or_default().2 += granted;
        }
    }
    let most = scopes.into_iter().max_by(|(a_name, a), (b_name, b)| a.cmp(b).then(b_name.cmp(a_name)));
    let (fullest, (active, queued, pending)) =
        most.map_or((None, (0, 0, 0)), |(name, counts)| (Some(name), counts));
    LimitStatus {
        name: limit.name.clone(),
        scope: limit.scope,
        max: limit.max_active_jobs,
        active,
        queued,
        pending,
        fullest,
    }
}

/// How many Jobs wait at a limit, in all of its scopes.
pub fn queued(limit: &Limit, jobs: &[Selected]) -> usize {
    let waits =
        |(job, group): &&Selected| job.is_queued() && scope_of(limit.scope, job, group.as_ref()).is_some();
    jobs.iter().filter(waits).count()
}

fn scope_of(scope: Scope, job: &JobSnapshot, group: Option<&GroupId>) -> Option<String> {
    match scope {
        Scope::Cluster => Some("cluster".to_owned()),
        Scope::Namespace => Some(job.namespace.clone()),
        Scope::Group => group.map(|group| format!("{}/{}", job.namespace, group.value)),
    }
}

fn condition(
    kind: &str,
    is: bool,
    reason: &str,
    message: String,
    generation: i64,
    before: &PolicyStatus,
    now: Timestamp,
) -> Condition {
    let status = if is { "True" } else { "False" };
    let same = before.conditions.iter().find(|known| known.type_ == kind && known.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: same.map_or(Time(now), |known| known.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::policy::{
        parsed::Policy,
        spec::{JobPolicy, JobPolicySpec},
    };

    use super::*;

    fn entry(spec: serde_json::Value) -> PolicyEntry {
        let spec: JobPolicySpec = serde_json::from_value(spec).unwrap();
        let mut policy = JobPolicy::new("builds", spec);
        policy.metadata.namespace = Some("ci".into());
        policy.metadata.uid = Some("p".into());
        policy.metadata.generation = Some(3);
        let policy = Policy::namespaced(&policy).unwrap();
        PolicyEntry {
            reference: policy.reference.clone(),
            generation: 3,
            policy: Ok(Arc::new(policy)),
            status: PolicyStatus::default(),
        }
    }

    fn replica(enforces: i64) -> Replica {
        let enforces = [("p".to_owned(), enforces)].into();
        Replica {
            renewed: "x".into(),
            seen: Instant::now(),
            duration: 15,
            enforces,
            withheld: BTreeMap::new(),
        }
    }

    fn ready(replicas: &[(&str, Replica)], kept: &Kept) -> Condition {
        let entry = entry(serde_json::json!({"limits": [{"name": "l", "maxActiveJobs": 2}]}));
        let situation = Situation {
            jobs: &[],
            replicas: &replicas.iter().map(|(name, r)| ((*name).to_owned(), r.clone())).collect(),
            entries: kept,
            pending: &BTreeMap::new(),
            refusal: None,
            grouped: true,
            sinks: &["ci".to_owned()].into(),
            results: ResultsStatus::default(),
            no_secrets: None,
            excluded: false,
            now: Timestamp::UNIX_EPOCH,
            clock: Instant::now(),
        };
        of(&entry, &situation).conditions[0].clone()
    }

    #[test]
    fn ready_waits_for_every_live_replica_and_the_entry() {
        let written = Kept { written: [("p".to_owned(), 3)].into(), fault: None };
        let mut dead = replica(2);
        dead.duration = 0;
        let mut blind = replica(2);
        blind.withheld = [("p".to_owned(), "its ledger is missing".to_owned())].into();
        for (replicas, kept, reason) in [
            (vec![], &written, "NoWebhook"),
            (vec![("dead", dead.clone())], &written, "NoWebhook"),
            (vec![("a", replica(3)), ("b", replica(2))], &written, "WebhookBehind"),
            (vec![("a", replica(3)), ("b", blind)], &written, "LedgerMissing"),
            (vec![("a", replica(3))], &Kept::default(), "EntryMissing"),
            (vec![("a", replica(3)), ("dead", dead)], &written, "Enforced"),
        ] {
            let found = ready(&replicas, kept);
            assert_eq!(found.reason, reason, "{}", found.message);
            assert_eq!(found.status == "True", reason == "Enforced");
            assert_eq!(found.observed_generation, Some(3));
        }
    }

    #[test]
    fn the_fullest_scope_is_shown() {
        let entry = entry(serde_json::json!({"limits": [{"name": "l", "maxActiveJobs": 2}]}));
        let job = |namespace: &str, suspended| {
            (Arc::new(JobSnapshot { namespace: namespace.into(), suspended, ..JobSnapshot::default() }), None)
        };
        let situation = Situation {
            jobs: &[job("ci", false), job("ci", true), job("b", false), job("b", false)],
            replicas: &BTreeMap::new(),
            entries: &Kept::default(),
            pending: &BTreeMap::new(),
            refusal: None,
            grouped: true,
            sinks: &["ci".to_owned()].into(),
            results: ResultsStatus::default(),
            no_secrets: None,
            excluded: false,
            now: Timestamp::UNIX_EPOCH,
            clock: Instant::now(),
        };
        let status = of(&entry, &situation);
        assert_eq!(status.usage.as_deref(), Some("2/2"));
        assert_eq!(status.limits[0].fullest.as_deref(), Some("b"));
        assert_eq!((status.running_jobs, status.pending_jobs), (Some(3), Some(1)));
        assert_eq!(status.queued_jobs, Some(0), "its author suspended it");
    }

    fn found(spec: serde_json::Value, jobs: &[Selected], grouped: bool) -> BTreeMap<String, Condition> {
        found_with(spec, jobs, grouped, None)
    }

    fn found_with(
        spec: serde_json::Value,
        jobs: &[Selected],
        grouped: bool,
        no_secrets: Option<String>,
    ) -> BTreeMap<String, Condition> {
        let situation = Situation {
            jobs,
            replicas: &[("a".to_owned(), replica(3))].into(),
            entries: &Kept { written: [("p".to_owned(), 3)].into(), fault: None },
            pending: &BTreeMap::new(),
            refusal: None,
            grouped,
            sinks: &["ci".to_owned()].into(),
            results: ResultsStatus::default(),
            no_secrets,
            excluded: false,
            now: Timestamp::UNIX_EPOCH,
            clock: Instant::now(),
        };
        let conditions = of(&entry(spec), &situation).conditions;
        conditions.into_iter().map(|condition| (condition.type_.clone(), condition)).collect()
    }

    #[test]
    fn more_active_jobs_than_allowed_are_reported() {
        let job = || (Arc::new(JobSnapshot { namespace: "ci".into(), ..JobSnapshot::default() }), None);
        let limit = serde_json::json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let over = &found(limit.clone(), &[job(), job()], true)[OVER_LIMIT];
        assert_eq!(over.status, "True");
        assert!(
            over.message.starts_with("limit \"l\" in ci: 2 active jobs, max allowed: 1"),
            "{}",
            over.message
        );
        assert_eq!(found(limit, &[job()], true)[OVER_LIMIT].status, "False");
        assert!(!found(serde_json::json!({}), &[job()], true).contains_key(OVER_LIMIT));
    }

    #[test]
    fn a_limit_by_group_without_a_group_is_told() {
        let limit = serde_json::json!({"limits": [{"name": "g", "maxActiveJobs": 1, "scope": "Group"}]});
        let without = &found(limit.clone(), &[], false)[ENFORCED];
        assert_eq!((without.status.as_str(), without.reason.as_str()), ("False", "NoGroup"));
        assert!(without.message.contains("limit \"g\" counts groups"), "{}", without.message);
        assert_eq!(found(limit, &[], true)[ENFORCED].status, "True");
    }

    #[test]
    fn mode_warn_says_what_it_does_and_does_not() {
        let conditions = found(serde_json::json!({"mode": "Warn"}), &[], true);
        assert!(conditions[READY].message.contains("is told, nothing is changed, refused or deleted"));
        assert_eq!(
            (conditions[READY].status.as_str(), conditions[ENFORCED].status.as_str()),
            ("True", "True")
        );
    }

    #[test]
    fn results_that_cannot_be_in_secrets_are_told() {
        let secret =
            serde_json::json!({"results": {"storageType": "Secret"}, "cloudEventSinks": [{"name": "typo"}]});
        let spec = entry(secret.clone()).policy.unwrap().spec.clone();
        assert_eq!(withheld(&spec, None), None);
        assert_eq!(withheld(&PolicySpec::default(), Some("no right")), None);
        let told = withheld(&spec, Some("no right to create Secrets: apply x")).unwrap();
        assert!(
            told.starts_with("results.storageType Secret: no right to create Secrets: apply x."),
            "{told}"
        );
        // The first thing that is missing is the reason, all of them are told.
        let mut condition = found(secret.clone(), &[], true)[ENFORCED].clone();
        assert_eq!(condition.reason, "NotTold");
        condition = found_with(secret, &[], true, Some("no right".to_owned()))[ENFORCED].clone();
        assert_eq!(condition.reason, "NoSecrets");
        assert!(
            condition.message.contains("no right") && condition.message.contains("typo"),
            "{condition:?}"
        );
    }

    #[test]
    fn receivers_that_nobody_configured_are_named() {
        let told = |spec| found(spec, &[], true)[ENFORCED].clone();
        let known = told(serde_json::json!({"results": {}, "cloudEventSinks": [{"name": "ci"}]}));
        assert!(!known.message.contains("cloudEventSinks"), "{}", known.message);
        let unknown =
            told(serde_json::json!({"results": {}, "cloudEventSinks": [{"name": "ci"}, {"name": "typo"}]}));
        assert_eq!(unknown.status, "False");
        assert!(unknown.message.contains("cloudEventSinks \"typo\" are not in"), "{}", unknown.message);
        assert!(unknown.message.contains("there: ci"), "{}", unknown.message);
        let silent = told(serde_json::json!({"cloudEventSinks": [{"name": "ci"}]}));
        assert_eq!((silent.status.as_str(), silent.reason.as_str()), ("False", "NotTold"));
    }
}
