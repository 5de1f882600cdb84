//! The messages of refusals. They appear in `kubectl`, Events, the status of policies and the audit log.

use std::collections::BTreeMap;

use jiff::Timestamp;
use job_handler_shared::{
    ledger::refusal::{DUPLICATE_JOB, IN_BACKOFF, LIMIT_REACHED},
    policy::{
        limit::{Limit, Scope},
        parsed::Policy,
        reference::PolicyRef,
    },
    text::human_seconds,
};

use crate::limit::{
    FAILURE_BACKOFF, Refused,
    scopes::{HolderKind, ScopeDomain, ScopeKey, SlotHolder},
};

/// How many of the oldest holders a message names.
const NAMED_HOLDERS: usize = 2;

/// The refusal of a Job for which no slot is free.
pub(crate) fn full(
    scope: &ScopeKey,
    limit: &Limit,
    holders: &BTreeMap<String, SlotHolder>,
    now: Timestamp,
) -> Refused {
    let message = match (&scope.domain, limit.max_active_jobs) {
        (ScopeDomain::Group(_, group), 1) => duplicate(scope, &group.value, holders, now),
        _ => limit_reached(scope, limit, holders, now),
    };
    let active = holders.len().to_string();
    refused(
        &scope.policy,
        &scope.limit,
        message,
        [("active", active), ("max", limit.max_active_jobs.to_string())],
    )
}

/// The refusal of a Job whose group waits after failures.
pub(crate) fn in_backoff(
    policy: &PolicyRef,
    group: &str,
    failures: u32,
    last: &str,
    until: Timestamp,
    now: Timestamp,
) -> Refused {
    let wait = human_seconds(round_up((until.as_second() - now.as_second()).max(1)));
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until).to_string();
    let times = if failures == 1 { "time".to_owned() } else { "times in a row".to_owned() };
    let message = format!(
        "{IN_BACKOFF}: group {group} failed {failures} {times} (last: {last}); the next try is allowed in {wait}, \
         at {until} (failureBackoff of {policy})"
    );
    refused(policy, FAILURE_BACKOFF, message, [("failures", failures.to_string()), ("until", until)])
}

/// The refusal of a create that was refused a moment ago, when the apiserver asked about it for another policy.
pub(crate) fn refused_before(policy: &Policy) -> Refused {
    let limit = policy.spec.limits.first().map_or(FAILURE_BACKOFF, |limit| &limit.name);
    let message = format!(
        "{LIMIT_REACHED} when this create was checked for another policy a moment ago; a slot of {} is free now: try again",
        policy.reference
    );
    refused(&policy.reference, limit, message, [])
}

fn refused<const N: usize>(
    policy: &PolicyRef,
    limit: &str,
    message: String,
    facts: [(&str, String); N],
) -> Refused {
    let mut audit: BTreeMap<String, String> =
        facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    audit.insert("policy".to_owned(), policy.to_string());
    audit.insert("limit".to_owned(), limit.to_owned());
    Refused { policy: policy.clone(), limit: limit.to_owned(), message, audit }
}

fn limit_reached(
    scope: &ScopeKey,
    limit: &Limit,
    holders: &BTreeMap<String, SlotHolder>,
    now: Timestamp,
) -> String {
    let counted = match &scope.domain {
        ScopeDomain::Cluster => "over the cluster".to_owned(),
        ScopeDomain::Namespace(_) => "per namespace".to_owned(),
        ScopeDomain::Group(_, group) => format!("per group, here {}", group.value),
    };
    let count = |kind| holders.values().filter(|holder| holder.kind == kind).count();
    let mut detail = format!("; {} running", count(HolderKind::Running));
    match count(HolderKind::JustAdmitted) {
        0 => {}
        admitted => detail += &format!(", {admitted} just admitted"),
    }
    let free = holders.values().filter_map(|holder| match holder.kind {
        HolderKind::NeverStored { free_within } => Some(free_within),
        _ => None,
    });
    if let Some(free_within) = free.clone().max() {
        let never_stored = free.count();
        let held = match never_stored {
            1 => "slot held by a create that was",
            _ => "slots held by creates that were",
        };
        let seconds = free_within.as_secs() + 1;
        detail += &format!(", {never_stored} {held} denied after admission, free within {seconds} s");
    }
    match count(HolderKind::OrphanedPods) {
        0 => {}
        orphaned => detail += &format!(", {orphaned} held by pods of deleted Jobs"),
    }
    let mut oldest: Vec<&SlotHolder> = holders.values().filter(|holder| !holder.kind.is_attempt()).collect();
    oldest.sort_by_key(|holder| (holder.since, &holder.name));
    let oldest: Vec<String> =
        oldest.into_iter().take(NAMED_HOLDERS).map(|holder| with_age(holder, limit.scope, now)).collect();
    if !oldest.is_empty() {
        detail += &format!("; oldest: {}", oldest.join(", "));
    }
    format!(
        "{LIMIT_REACHED}: {} active jobs, max allowed: {} (limit \"{}\" of {}, counted {counted}{detail})",
        holders.len(),
        limit.max_active_jobs,
        scope.limit,
        scope.policy,
    )
}

fn duplicate(
    scope: &ScopeKey,
    group: &str,
    holders: &BTreeMap<String, SlotHolder>,
    now: Timestamp,
) -> String {
    let active = match holders.values().next() {
        Some(SlotHolder { kind, name, .. }) if kind.is_attempt() => {
            format!("{name} of group {group} was just admitted")
        }
        Some(SlotHolder { kind: HolderKind::OrphanedPods, name, since, .. }) => {
            let age = human_seconds(now.as_second() - since.as_second());
            format!("{name} of group {group} (created {age} ago) was deleted, and its pods run on")
        }
        Some(SlotHolder { name, since, .. }) => {
            let age = human_seconds(now.as_second() - since.as_second());
            format!("{name} of group {group} is still active (created {age} ago)")
        }
        None => format!("a Job of group {group} is still active"),
    };
    format!(
        "{DUPLICATE_JOB}: {active}; max allowed: 1 per group (limit \"{}\" of {})",
        scope.limit, scope.policy
    )
}

/// Rounds up to what [`human_seconds`] shows, so that a retry after the shown time is not too early.
fn round_up(seconds: i64) -> i64 {
    let unit = match seconds {
        ..120 => 1,
        120..172_740 => 60,
        _ => 86_400,
    };
    (seconds + unit - 1) / unit * unit
}

fn with_age(holder: &SlotHolder, scope: Scope, now: Timestamp) -> String {
    let age = human_seconds(now.as_second() - holder.since.as_second());
    let gone = if holder.kind == HolderKind::OrphanedPods { " (deleted)" } else { "" };
    match scope {
        Scope::Cluster => format!("{}/{} {age}{gone}", holder.namespace, holder.name),
        Scope::Namespace | Scope::Group => format!("{} {age}{gone}", holder.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_wait_is_never_too_short() {
        for (seconds, shown) in [
            (1, "1s"),
            (119, "119s"),
            (120, "2m"),
            (294, "5m"),
            (7_199, "2h"),
            (7_201, "2h1m"),
            (172_741, "2d"),
            (172_801, "3d"),
        ] {
            assert_eq!(human_seconds(round_up(seconds)), shown, "{seconds}");
        }
    }

    #[test]
    fn pods_of_deleted_jobs_are_named() {
        let limit: Limit =
            serde_json::from_value(serde_json::json!({"name": "l", "maxActiveJobs": 2})).unwrap();
        let policy = job_handler_shared::testing::policies::namespaced("p", serde_json::json!({}));
        let scope = ScopeKey {
            policy: policy.reference.clone(),
            limit: "l".into(),
            domain: ScopeDomain::Namespace("ci".into()),
        };
        let holder = |name: &str, kind| {
            let (namespace, since) = ("ci".to_owned(), Timestamp::UNIX_EPOCH);
            (name.to_owned(), SlotHolder { namespace, name: name.to_owned(), since, kind })
        };
        let holders = [holder("a", HolderKind::OrphanedPods), holder("b", HolderKind::Running)].into();
        let refused = full(&scope, &limit, &holders, Timestamp::from_second(5).unwrap());
        let expected = "1 running, 1 held by pods of deleted Jobs; oldest: a 5s (deleted), b 5s)";
        assert!(refused.message.ends_with(expected), "{}", refused.message);
    }
}
