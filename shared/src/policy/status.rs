//! Status of a policy, as `kubectl get` and `kubectl describe` show it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    policy::{limit::Scope, schema::describe_enum_values},
    text::{escape_unsafe, truncate},
};

/// Condition: all live webhook replicas enforce `observedGeneration`.
pub const READY: &str = "Ready";
/// Condition: every part of the policy has an effect; otherwise the message names the parts that have none.
pub const ENFORCED: &str = "FullyEnforced";

/// Condition of policies with limits: a scope has more active Jobs than its limit allows.
pub const OVER_LIMIT: &str = "OverLimit";

/// Status of a policy. The leader of the sinks writes it, except `lastRefusal`, which every sink writes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = describe_enum_values)]
pub struct PolicyStatus {
    /// Generation of the policy that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `FullyEnforced` and, for policies with limits, `OverLimit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Text of the `Limits` column: `active/max` of each limit, in its fullest scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// Usage of each limit, in its fullest scope.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitStatus>,
    /// Selected Jobs that are suspended, by a limit of this policy or by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_jobs: Option<u32>,
    /// Selected Jobs that wait for a slot of a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_jobs: Option<u32>,
    /// Selected Jobs that are active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_jobs: Option<u32>,
    /// Time since which all live webhook replicas have enforced this generation. Older Jobs are not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force_since: Option<Time>,
    /// Stored results of the selected Jobs. A result that two policies ask for counts for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<ResultsStatus>,
    /// The Job that was refused last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<LastRefusal>,
}

/// Stored results of a policy's Jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultsStatus {
    /// Number of results.
    pub stored: u32,
    /// Total size in bytes.
    pub bytes: u64,
    /// Total size in readable form, such as `3.4Mi`.
    #[serde(default)]
    pub size: String,
    /// Number of results that lack a log or another part; each result names what it lacks.
    #[serde(default)]
    pub incomplete: u32,
}

/// Usage of a limit, in its fullest scope.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// Name of the limit.
    pub name: String,
    /// Scope in which the limit counts.
    pub scope: Scope,
    /// `maxActiveJobs` of the limit.
    pub max: u32,
    /// Active Jobs in that scope.
    pub active: u32,
    /// Slots in that scope that are held by pods of deleted Jobs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub orphaned: u32,
    /// Jobs that wait for a slot in that scope.
    #[serde(default)]
    pub queued: u32,
    /// Admitted Jobs that the watches have not shown yet; they hold slots.
    #[serde(default)]
    pub pending: u32,
    /// Those of them that should have been stored long ago: something denied them after job-handler.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub never_stored: u32,
    /// The scope: `cluster`, a namespace, or `namespace/group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fullest: Option<String>,
}

impl LimitStatus {
    /// All slots that are in use in the scope, as a refusal counts them.
    pub fn used(&self) -> u32 {
        self.active.saturating_add(self.pending).saturating_add(self.orphaned)
    }

    /// Used and maximum slots, and what holds them if not all are running Jobs: `4/4 (1 just admitted, 2 never stored)`.
    pub fn usage(&self) -> String {
        let just_admitted = self.pending.saturating_sub(self.never_stored);
        let others = [
            (just_admitted, "just admitted"),
            (self.never_stored, "never stored"),
            (self.orphaned, "of deleted Jobs"),
        ];
        let others: Vec<String> = others
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect();
        let slots = format!("{}/{}", self.used(), self.max);
        if others.is_empty() { slots } else { format!("{slots} ({})", others.join(", ")) }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The Job that a policy refused last.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastRefusal {
    /// `namespace/name` of the refused Job.
    pub job: String,
    /// Message that its author received.
    pub reason: String,
    /// Time of the refusal.
    pub time: Time,
}

/// Longest [`LastRefusal::job`] in bytes: a namespace, a slash and a name.
const MAX_JOB: usize = 63 + 1 + 253;
/// Longest [`LastRefusal::reason`] in bytes, as of an Event's note.
const MAX_MESSAGE: usize = 1024;

impl LastRefusal {
    /// A refusal whose texts are escaped and bounded: they come from the webhook's callers.
    pub fn new(namespace: &str, job: &str, message: &str, time: Time) -> Self {
        let bounded = |text: &str, max| {
            let mut text = escape_unsafe(text).into_owned();
            truncate(&mut text, max);
            text
        };
        let job = bounded(&format!("{namespace}/{job}"), MAX_JOB);
        Self { job, reason: bounded(message, MAX_MESSAGE), time }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn the_last_refusal_is_bounded_and_drives_no_terminal() {
        let time = Time(Timestamp::UNIX_EPOCH);
        let refusal = LastRefusal::new("ci", &"a".repeat(900_000), &"\u{1b}[2J".repeat(9_000), time);
        assert!(refusal.job.len() <= MAX_JOB && refusal.reason.len() <= MAX_MESSAGE);
        assert!(refusal.reason.starts_with("\\u001b[2J"), "{}", refusal.reason);
        let time = Time(Timestamp::UNIX_EPOCH);
        let usual = LastRefusal::new("ci", "build-11", "concurrent job limit reached", time);
        assert_eq!((&*usual.job, &*usual.reason), ("ci/build-11", "concurrent job limit reached"));
    }
}
