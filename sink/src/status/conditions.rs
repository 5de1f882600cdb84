//! The conditions of a policy. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    policy::{
        limit::Scope,
        namespace_share::{NAMESPACE_LABEL_KEYS_MAX, NAMESPACE_POLICIES_MAX, NAMESPACE_POLICY_BYTES_MAX},
        parsed::Policy,
        results::StorageType,
        spec::PolicySpec,
        status::{LimitStatus, PolicyStatus},
    },
    text::{escape_unsafe, human_bytes, truncate},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::{
    model::{
        entry_state::EntryFailure,
        policy_entry::{MissingPolicy, PolicyEntry},
    },
    status::policy_status::StatusInputs,
};

/// Longest message in bytes; `metav1.Condition` allows 32 KiB.
const MAX_MESSAGE: usize = 16 << 10;

/// Status, reason and message of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConditionState {
    pub(crate) holds: bool,
    reason: &'static str,
    message: String,
}

impl ConditionState {
    /// The message may quote what users and the apiserver wrote: it is escaped and bounded.
    pub(crate) fn new(holds: bool, reason: &'static str, message: impl AsRef<str>) -> Self {
        let mut message = escape_unsafe(message.as_ref()).into_owned();
        truncate(&mut message, MAX_MESSAGE);
        Self { holds, reason, message }
    }

    /// Keeps the transition time of `before` where the status is the same.
    pub(crate) fn into_condition(
        self,
        kind: &str,
        generation: i64,
        before: &PolicyStatus,
        now: Timestamp,
    ) -> Condition {
        let status = if self.holds { "True" } else { "False" };
        let same = before.conditions.iter().find(|known| known.type_ == kind && known.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: self.reason.to_owned(),
            message: self.message,
            observed_generation: Some(generation),
            last_transition_time: same.map_or(Time(now), |known| known.last_transition_time.clone()),
        }
    }
}

/// `Ready`: every live webhook replica enforces this generation, and its webhook entries are in place.
pub(crate) fn ready(entry: &PolicyEntry, inputs: &StatusInputs<'_>) -> ConditionState {
    let generation = entry.generation;
    let policy = match &entry.policy {
        Ok(policy) => policy,
        Err(MissingPolicy::Unreadable(error)) => return ConditionState::new(false, "Unreadable", error),
        Err(_) if inputs.excluded => return excluded(),
        Err(MissingPolicy::NoRoom) => return no_room(entry),
        // The time makes each write another one. An equal status would be no event of the watches.
        Err(MissingPolicy::Awaited) => {
            let message =
                format!("there is room for it again; it is read and applies in a moment ({})", inputs.now);
            return ConditionState::new(false, "Reading", message);
        }
    };
    if inputs.excluded {
        return excluded();
    }
    let live: Vec<_> = inputs.replicas.iter().filter(|(_, replica)| replica.is_live(inputs.clock)).collect();
    if live.is_empty() {
        return ConditionState::new(
            false,
            "NoWebhook",
            "no webhook replica is alive: see `kubectl get leases -l job-handler/component=webhook` in job-handler's namespace",
        );
    }
    let uid = &entry.reference.uid;
    let withheld = live.iter().find_map(|(name, replica)| Some((name, replica.policies.withholds(uid)?)));
    if let Some((replica, why)) = withheld {
        return ConditionState::new(
            false,
            "LedgerMissing",
            format!("webhook replica {replica} cannot check its limits: {why}"),
        );
    }
    let behind: Vec<&str> = live
        .iter()
        .filter(|(_, replica)| replica.policies.enforces(uid) != Some(generation))
        .map(|(name, _)| name.as_str())
        .collect();
    if !behind.is_empty() {
        let message = format!(
            "waiting for {} of {} webhook replicas to load generation {generation}: {}",
            behind.len(),
            live.len(),
            behind.join(", ")
        );
        return ConditionState::new(false, "WebhookBehind", message);
    }
    if policy.has_limits() && inputs.entries.written.get(uid) != Some(&generation) {
        let error =
            || EntryFailure::missing(inputs.entries.error.as_deref().unwrap_or("it is being written"));
        let failure = inputs.entries.failures.get(uid).cloned().unwrap_or_else(error);
        return ConditionState::new(false, failure.reason, failure.message);
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
            "mode Warn: {replicas} webhook replica{s} evaluate{} generation {generation} to report what the policy would do; nothing is changed, refused or deleted",
            if replicas == 1 { "s" } else { "" }
        )
    };
    ConditionState::new(true, if policy.enforced() { "Enforced" } else { "Warns" }, message)
}

fn excluded() -> ConditionState {
    let message = "Jobs in this namespace are never changed; move the policy to the namespace of its Jobs";
    ConditionState::new(false, "ExcludedNamespace", message)
}

fn no_room(entry: &PolicyEntry) -> ConditionState {
    let message = format!(
        "namespace {} has more than {NAMESPACE_POLICIES_MAX} JobPolicies, or their specs more than {}, or they name more \
         than {NAMESPACE_LABEL_KEYS_MAX} different label keys in selectors, groups and stamped labels; the oldest ones apply, \
         and this one does not: delete some, or merge them",
        entry.reference.namespace.as_deref().unwrap_or_default(),
        human_bytes(NAMESPACE_POLICY_BYTES_MAX as u64)
    );
    ConditionState::new(false, "TooManyPolicies", message)
}

/// `FullyEnforced`: every field of the policy has an effect.
pub(crate) fn fully_enforced(policy: &Policy, inputs: &StatusInputs<'_>) -> ConditionState {
    let spec = &policy.spec;
    let mut problems: Vec<(&'static str, String)> = Vec::new();
    problems.extend(policy.left_out.iter().map(|why| ("StampInvalid", format!("{why}; it is left out"))));
    problems.extend(secrets_unavailable(spec, inputs.no_secrets.as_deref()).map(|why| ("NoSecrets", why)));
    let without_group = if inputs.has_group { Vec::new() } else { group_limits(spec) };
    if !without_group.is_empty() {
        let why = format!(
            "limit {} has scope Group, but no enforced policy that selects these Jobs sets spec.group: it has no effect",
            without_group.join(", ")
        );
        problems.push(("NoGroup", why));
    }
    problems.extend(too_many_bytes(spec, inputs.namespace_bytes_max).map(|why| ("BytesLimited", why)));
    problems.extend(undeliverable(spec, inputs.receivers).map(|why| ("NoCloudEvents", why)));
    let Some((reason, _)) = problems.first() else {
        return ConditionState::new(true, "Complete", "every field of this policy has an effect");
    };
    let reason = *reason;
    ConditionState::new(
        false,
        reason,
        problems.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join(". "),
    )
}

/// Results that should be stored in Secrets and cannot be.
pub(crate) fn secrets_unavailable(spec: &PolicySpec, no_secrets: Option<&str>) -> Option<String> {
    let wanted = spec.results.as_ref().is_some_and(|results| results.storage_type == StorageType::Secret);
    no_secrets.filter(|_| wanted).map(|why| {
        format!(
            "results.storageType Secret: {why}. Until then results are stored in ConfigMaps, without logs and termination \
             messages"
        )
    })
}

/// More bytes than the operator allows.
fn too_many_bytes(spec: &PolicySpec, max: Option<u64>) -> Option<String> {
    let wanted = spec.results.as_ref()?.max_bytes_per_namespace;
    max.filter(|max| wanted.0 > *max).map(|max| {
        format!(
            "results.maxBytesPerNamespace {wanted}: the sink allows {} (--results-max-bytes-per-namespace), which applies",
            human_bytes(max)
        )
    })
}

/// CloudEvents that have no receiver or no source.
fn undeliverable(spec: &PolicySpec, receivers: &BTreeSet<String>) -> Option<String> {
    let names = spec.cloud_event_sinks.iter().map(|sink| &sink.name);
    let unknown: Vec<String> =
        names.filter(|name| !receivers.contains(*name)).map(|n| format!("\"{n}\"")).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = receivers.iter().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Some(format!(
            "cloudEventSinks {} are not in the sink's configuration (ConfigMap {}; configured: {known}). Events for finished \
             Jobs are kept until the sink is configured; refusal events are dropped",
            unknown.join(", "),
            keys::SINK_CONFIGURATION
        ));
    }
    (!spec.cloud_event_sinks.is_empty() && spec.results.is_none()).then(|| {
        "CloudEvents about finished Jobs are made from their results, and this policy stores none: set spec.results \
         (logs.mode None stores the least)"
            .to_owned()
    })
}

/// Names of the limits with scope Group.
pub(crate) fn group_limits(spec: &PolicySpec) -> Vec<String> {
    let limits = spec.limits.iter().filter(|limit| limit.scope == Scope::Group);
    limits.map(|limit| format!("\"{}\"", limit.name)).collect()
}

/// `OverLimit`: a scope has more active Jobs than its limit allows. `limits` are of each limit's fullest scope. Also says
/// where pods of deleted Jobs run on, of which no result is stored.
pub(crate) fn over_limit(limits: &[LimitStatus]) -> ConditionState {
    let usage = |limit: &LimitStatus| {
        let place = limit.fullest.as_deref().unwrap_or("-");
        let LimitStatus { name, active, orphaned, max, .. } = limit;
        let held = match orphaned {
            0 => String::new(),
            _ => format!(", {orphaned} slots held by pods of deleted Jobs"),
        };
        format!("limit \"{name}\" in {place}: {active} active jobs{held}, max allowed: {max}")
    };
    let usages = |counts: fn(&&LimitStatus) -> bool| -> Vec<String> {
        limits.iter().filter(counts).map(usage).collect()
    };
    let over = usages(|limit| limit.active + limit.orphaned > limit.max);
    let orphaned = usages(|limit| limit.orphaned > 0);
    let lost = match orphaned.is_empty() {
        true => "",
        false => {
            ". Pods of deleted Jobs run on and hold their slots until they end; no result is stored of them"
        }
    };
    if over.is_empty() && orphaned.is_empty() {
        return ConditionState::new(
            false,
            "WithinLimits",
            "no scope has more active Jobs than its limit allows",
        );
    }
    if over.is_empty() {
        return ConditionState::new(false, "OrphanedPods", format!("{}{lost}", orphaned.join(", ")));
    }
    let message = format!(
        "{}; these Jobs are older than the limit, were relabelled into its scope, or were created while its webhook entry \
         was missing. They keep running and count; no other Job starts until there is room{lost}",
        over.join(", ")
    );
    ConditionState::new(true, "TooMany", message)
}
