//! The status of a policy. Pure; [`crate::status::writer`] writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobState,
    policy::status::{ENFORCED, LastRefusal, LimitStatus, OVER_LIMIT, PolicyStatus, READY, ResultsStatus},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    model::{
        entry_state::EntryState,
        policy_entry::{MissingPolicy, PolicyEntry},
        replica::Replica,
    },
    observe::ledger_index::HeldInScope,
    status::{
        conditions::{self, ConditionState},
        limit_usage::{SelectedJob, fullest_scope},
    },
};

/// What a status depends on, besides the policy itself.
#[derive(Debug)]
pub(crate) struct StatusInputs<'a> {
    /// The unfinished Jobs that the policy selects.
    pub(crate) jobs: &'a [SelectedJob],
    /// Webhook replicas by name.
    pub(crate) replicas: &'a BTreeMap<String, Replica>,
    pub(crate) entries: &'a EntryState,
    /// Admissions whose Job has not been observed yet, by limit and scope.
    pub(crate) pending: &'a BTreeMap<(String, String), (u32, u32)>,
    /// Slots that the ledgers hold by uids of Jobs.
    pub(crate) held: &'a [HeldInScope],
    pub(crate) last_refusal: Option<LastRefusal>,
    /// An enforced policy that can select the same Jobs sets `spec.group`.
    pub(crate) has_group: bool,
    /// The configured receivers of CloudEvents.
    pub(crate) receivers: &'a BTreeSet<String>,
    /// The results that the policy requested.
    pub(crate) results: ResultsStatus,
    /// Why results cannot be stored in Secrets, if they cannot.
    pub(crate) no_secrets: Option<String>,
    /// Most bytes that a policy may grant the results of a namespace, if there is a maximum.
    pub(crate) namespace_bytes_max: Option<u64>,
    /// The policy is in a namespace where Jobs are never changed.
    pub(crate) excluded: bool,
    /// Wall clock, for the conditions' transition times.
    pub(crate) now: Timestamp,
    /// Monotonic clock, for the replicas' Leases.
    pub(crate) clock: Instant,
}

/// The status that a policy should have.
pub(crate) fn policy_status(entry: &PolicyEntry, inputs: &StatusInputs<'_>) -> PolicyStatus {
    let before = &entry.status;
    let spec = entry.policy.as_ref().ok().map(|policy| &policy.spec);
    let ready = conditions::ready(entry, inputs);
    let is_ready = ready.holds;
    let full = match &entry.policy {
        Ok(policy) => conditions::fully_enforced(policy, inputs),
        Err(MissingPolicy::Unreadable(_)) => {
            ConditionState::new(false, "Unreadable", "this policy cannot be read")
        }
        Err(MissingPolicy::NoRoom | MissingPolicy::Awaited) => {
            ConditionState::new(false, "DoesNotApply", "this policy does not apply: see condition Ready")
        }
    };
    let limits: Vec<LimitStatus> = spec.map_or_else(Vec::new, |spec| {
        spec.limits
            .iter()
            .map(|limit| fullest_scope(limit, inputs.jobs, inputs.pending, inputs.held))
            .collect()
    });
    let usage: Vec<String> = limits.iter().map(LimitStatus::usage).collect();
    let count = |wanted: JobState| {
        let jobs = inputs.jobs.iter().filter(|selected| selected.job.state() == wanted).count();
        u32::try_from(jobs).ok()
    };
    let condition =
        |verdict: ConditionState, kind| verdict.into_condition(kind, entry.generation, before, inputs.now);
    let mut conditions = vec![condition(ready, READY), condition(full, ENFORCED)];
    if entry.policy.as_ref().is_ok_and(|policy| policy.enforced()) && !limits.is_empty() {
        conditions.push(condition(conditions::over_limit(&limits), OVER_LIMIT));
    }
    let queued = inputs.jobs.iter().filter(|selected| selected.job.is_queued()).count();
    PolicyStatus {
        observed_generation: Some(entry.generation),
        conditions,
        usage: Some(if usage.is_empty() { "-".to_owned() } else { usage.join(", ") }),
        limits,
        pending_jobs: count(JobState::Suspended),
        queued_jobs: u32::try_from(queued).ok(),
        running_jobs: count(JobState::Active),
        in_force_since: in_force_since(entry, is_ready, inputs.now),
        results: spec
            .filter(|spec| spec.results.is_some() || inputs.results.stored > 0)
            .map(|_| inputs.results.clone()),
        last_refusal: newer(inputs.last_refusal.clone(), before.last_refusal.clone()),
    }
}

/// Since when this generation has been in force. It stays set while the policy is not ready, as in an outage of the
/// webhook.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use job_handler_shared::{
        job::snapshot::JobSnapshot,
        keys,
        policy::{presence::Presence, spec::PolicySpec},
        testing::policies::namespaced,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        model::entry_state::EntryFailure, status::conditions::secrets_unavailable, test_support::policy_entry,
    };

    fn entry(spec: Value) -> PolicyEntry {
        policy_entry(3, namespaced("p", spec))
    }

    /// Owns what [`StatusInputs`] borrow. By default, the policy is enforced everywhere and selects no Job.
    struct TestInputs {
        jobs: Vec<SelectedJob>,
        held: Vec<HeldInScope>,
        replicas: BTreeMap<String, Replica>,
        entries: EntryState,
        has_group: bool,
        no_secrets: Option<String>,
        now: Timestamp,
    }

    impl Default for TestInputs {
        fn default() -> Self {
            Self {
                jobs: Vec::new(),
                held: Vec::new(),
                replicas: [("a".to_owned(), replica(3))].into(),
                entries: written(),
                has_group: true,
                no_secrets: None,
                now: Timestamp::UNIX_EPOCH,
            }
        }
    }

    impl TestInputs {
        fn status_of(self, entry: &PolicyEntry) -> PolicyStatus {
            let inputs = StatusInputs {
                jobs: &self.jobs,
                replicas: &self.replicas,
                entries: &self.entries,
                pending: &BTreeMap::new(),
                held: &self.held,
                last_refusal: None,
                has_group: self.has_group,
                receivers: &["ci".to_owned()].into(),
                results: ResultsStatus::default(),
                no_secrets: self.no_secrets,
                namespace_bytes_max: Some(128 << 20),
                excluded: false,
                now: self.now,
                clock: Instant::now(),
            };
            policy_status(entry, &inputs)
        }

        /// The conditions of a policy with this spec, by type.
        fn conditions_of(self, spec: Value) -> BTreeMap<String, Condition> {
            let conditions = self.status_of(&entry(spec)).conditions;
            conditions.into_iter().map(|condition| (condition.type_.clone(), condition)).collect()
        }
    }

    fn written() -> EntryState {
        EntryState { written: [("p".to_owned(), 3)].into(), ..EntryState::default() }
    }

    fn replica(enforces: i64) -> Replica {
        let enforces = format!(r#"{{"p":{enforces}}}"#);
        let policies = presence(keys::ENFORCES, &enforces);
        Replica { renewed: "x".into(), seen: Instant::now(), duration: 15, policies }
    }

    fn presence(annotation: &str, value: &str) -> Presence {
        Presence::read(&[(annotation.to_owned(), value.to_owned())].into())
    }

    fn ready(replicas: Vec<(&str, Replica)>, entries: &EntryState) -> Condition {
        let replicas = replicas.into_iter().map(|(name, replica)| (name.to_owned(), replica)).collect();
        let inputs = TestInputs { replicas, entries: entries.clone(), ..TestInputs::default() };
        inputs.status_of(&entry(json!({"limits": [{"name": "l", "maxActiveJobs": 2}]}))).conditions[0].clone()
    }

    #[test]
    fn a_policy_is_ready_when_every_live_replica_and_the_entries_are() {
        let written = written();
        let failed = |failure: EntryFailure| EntryState {
            failures: [("p".to_owned(), failure)].into(),
            ..EntryState::default()
        };
        let rejected = failed(EntryFailure::rejected("label key too long"));
        let left_out = failed(EntryFailure::no_room("no room"));
        let mut dead = replica(2);
        dead.duration = 0;
        let mut withholding = replica(2);
        withholding.policies = presence(keys::WITHHELD, r#"{"p":"its ledger is missing"}"#);
        for (replicas, entries, reason) in [
            (vec![], &written, "NoWebhook"),
            (vec![("dead", dead.clone())], &written, "NoWebhook"),
            (vec![("a", replica(3)), ("b", replica(2))], &written, "WebhookBehind"),
            (vec![("a", replica(3)), ("b", withholding)], &written, "LedgerMissing"),
            (vec![("a", replica(3))], &EntryState::default(), "EntryMissing"),
            (vec![("a", replica(3))], &rejected, "EntryRejected"),
            (vec![("a", replica(3))], &left_out, "NoRoom"),
            (vec![("a", replica(3)), ("dead", dead)], &written, "Enforced"),
        ] {
            let found = ready(replicas, entries);
            assert_eq!(found.reason, reason, "{}", found.message);
            assert_eq!(found.status == "True", reason == "Enforced");
            assert_eq!(found.observed_generation, Some(3));
        }
    }

    #[test]
    fn a_policy_above_the_maximum_of_its_namespace_says_so() {
        let beyond = PolicyEntry { policy: Err(MissingPolicy::NoRoom), ..entry(json!({})) };
        let status = TestInputs::default().status_of(&beyond);
        let [ready, full] = &status.conditions[..] else { panic!("{status:?}") };
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "TooManyPolicies"));
        assert!(ready.message.starts_with("namespace ci has more than 100 JobPolicies"), "{}", ready.message);
        assert_eq!((full.status.as_str(), full.reason.as_str()), ("False", "DoesNotApply"));
        assert_eq!(status.usage.as_deref(), Some("-"));
    }

    /// Each write of another status has the watches deliver the policy once more.
    #[test]
    fn a_policy_that_has_room_again_gets_another_status_until_it_is_read() {
        let awaited = PolicyEntry { policy: Err(MissingPolicy::Awaited), ..entry(json!({})) };
        let status_at = |second: i64| {
            let now = Timestamp::from_second(second).unwrap();
            TestInputs { now, ..TestInputs::default() }.status_of(&awaited)
        };
        let first = status_at(1);
        assert_eq!(
            (first.conditions[0].status.as_str(), first.conditions[0].reason.as_str()),
            ("False", "Reading")
        );
        let written = PolicyEntry { status: first.clone(), ..awaited.clone() };
        let now = Timestamp::from_second(2).unwrap();
        assert_ne!(TestInputs { now, ..TestInputs::default() }.status_of(&written), first);
    }

    #[test]
    fn a_stamp_that_is_left_out_is_named() {
        let spec = json!({"stamp": {"labels": {"job-name": "x"}}});
        let full = &TestInputs::default().conditions_of(spec)[ENFORCED];
        assert_eq!((full.status.as_str(), full.reason.as_str()), ("False", "StampInvalid"));
        let expected = "spec.stamp.labels: job-name belongs to the Job controller; it is left out";
        assert_eq!(full.message, expected);
    }

    #[test]
    fn the_fullest_scope_is_shown() {
        let entry = entry(json!({"limits": [{"name": "l", "maxActiveJobs": 2}]}));
        let job = |namespace: &str, suspended| SelectedJob {
            job: Arc::new(JobSnapshot { namespace: namespace.into(), suspended, ..JobSnapshot::default() }),
            group: None,
        };
        let jobs = vec![job("ci", false), job("ci", true), job("b", false), job("b", false)];
        let status = TestInputs { jobs, ..TestInputs::default() }.status_of(&entry);
        assert_eq!(status.usage.as_deref(), Some("2/2"));
        assert_eq!(status.limits[0].fullest.as_deref(), Some("b"));
        assert_eq!((status.running_jobs, status.pending_jobs), (Some(3), Some(1)));
        assert_eq!(status.queued_jobs, Some(0), "its author suspended it");
    }

    #[test]
    fn more_active_jobs_than_allowed_are_reported() {
        let job = || SelectedJob {
            job: Arc::new(JobSnapshot { namespace: "ci".into(), ..JobSnapshot::default() }),
            group: None,
        };
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let with_jobs = |jobs| TestInputs { jobs, ..TestInputs::default() };
        let over = &with_jobs(vec![job(), job()]).conditions_of(limit.clone())[OVER_LIMIT];
        assert_eq!(over.status, "True");
        assert!(
            over.message.starts_with("limit \"l\" in ci: 2 active jobs, max allowed: 1"),
            "{}",
            over.message
        );
        assert_eq!(with_jobs(vec![job()]).conditions_of(limit)[OVER_LIMIT].status, "False");
        assert!(!with_jobs(vec![job()]).conditions_of(json!({})).contains_key(OVER_LIMIT));
    }

    #[test]
    fn a_group_limit_without_a_group_is_reported() {
        let limit = json!({"limits": [{"name": "g", "maxActiveJobs": 1, "scope": "Group"}]});
        let without_group = TestInputs { has_group: false, ..TestInputs::default() };
        let without = &without_group.conditions_of(limit.clone())[ENFORCED];
        assert_eq!((without.status.as_str(), without.reason.as_str()), ("False", "NoGroup"));
        assert!(without.message.contains("limit \"g\" has scope Group"), "{}", without.message);
        assert_eq!(TestInputs::default().conditions_of(limit)[ENFORCED].status, "True");
    }

    #[test]
    fn mode_warn_says_that_nothing_is_changed() {
        let conditions = TestInputs::default().conditions_of(json!({"mode": "Warn"}));
        assert!(
            conditions[READY]
                .message
                .contains("report what the policy would do; nothing is changed, refused or deleted")
        );
        assert_eq!(
            (conditions[READY].status.as_str(), conditions[ENFORCED].status.as_str()),
            ("True", "True")
        );
    }

    #[test]
    fn results_that_cannot_be_stored_in_secrets_are_reported() {
        let secret = json!({"results": {"storageType": "Secret"}, "cloudEventSinks": [{"name": "typo"}]});
        let spec = entry(secret.clone()).policy.unwrap().spec.clone();
        assert_eq!(secrets_unavailable(&spec, None), None);
        assert_eq!(secrets_unavailable(&PolicySpec::default(), Some("no right")), None);
        let message = secrets_unavailable(&spec, Some("no right to create Secrets: apply x")).unwrap();
        assert!(
            message.starts_with("results.storageType Secret: no right to create Secrets: apply x."),
            "{message}"
        );
        // The first problem is the reason; the message lists all.
        let mut condition = TestInputs::default().conditions_of(secret.clone())[ENFORCED].clone();
        assert_eq!(condition.reason, "NoCloudEvents");
        let without_right = TestInputs { no_secrets: Some("no right".to_owned()), ..TestInputs::default() };
        condition = without_right.conditions_of(secret)[ENFORCED].clone();
        assert_eq!(condition.reason, "NoSecrets");
        assert!(
            condition.message.contains("no right") && condition.message.contains("typo"),
            "{condition:?}"
        );
    }

    #[test]
    fn more_bytes_than_the_operator_allows_are_reported() {
        let condition = |bytes: &str| {
            let spec = json!({"results": {"maxBytesPerNamespace": bytes}});
            TestInputs::default().conditions_of(spec)[ENFORCED].clone()
        };
        assert_eq!(condition("128Mi").status, "True");
        let limited = condition("1Gi");
        assert_eq!((limited.status.as_str(), limited.reason.as_str()), ("False", "BytesLimited"));
        assert!(limited.message.contains("the sink allows 128.0Mi"), "{}", limited.message);
    }

    #[test]
    fn receivers_that_are_not_configured_are_named() {
        let condition = |spec| TestInputs::default().conditions_of(spec)[ENFORCED].clone();
        let known = condition(json!({"results": {}, "cloudEventSinks": [{"name": "ci"}]}));
        assert!(!known.message.contains("cloudEventSinks"), "{}", known.message);
        let unknown =
            condition(json!({"results": {}, "cloudEventSinks": [{"name": "ci"}, {"name": "typo"}]}));
        assert_eq!(unknown.status, "False");
        assert!(unknown.message.contains("cloudEventSinks \"typo\" are not in"), "{}", unknown.message);
        assert!(unknown.message.contains("configured: ci"), "{}", unknown.message);
        let silent = condition(json!({"cloudEventSinks": [{"name": "ci"}]}));
        assert_eq!((silent.status.as_str(), silent.reason.as_str()), ("False", "NoCloudEvents"));
    }
}
