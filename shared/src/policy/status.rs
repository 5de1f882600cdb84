//! What a policy's status tells, to `kubectl get` and `kubectl describe`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::limit::Scope;

/// Condition: every live webhook replica enforces `observedGeneration`.
pub const READY: &str = "Ready";
/// Condition: parts of the policy that this version does not act on yet are named in its message.
pub const ENFORCED: &str = "FullyEnforced";

/// Condition of policies with limits: some scope holds more active Jobs than its limit allows.
pub const OVER_LIMIT: &str = "OverLimit";

/// Status of a policy; written by the sink's leader only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation these lines are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `FullyEnforced` and, with limits, `OverLimit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Short text for the column: `active/max` of each limit's fullest scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// Each limit's fullest scope.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitStatus>,
    /// Selected Jobs that wait: queued, or suspended by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_jobs: Option<u32>,
    /// Selected Jobs that wait for a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_jobs: Option<u32>,
    /// Selected Jobs that are active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_jobs: Option<u32>,
    /// Since when every live webhook replica has enforced this generation; Jobs that were there before are left as they
    /// are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force_since: Option<Time>,
    /// The results that this policy asked for; those of two policies count with both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<ResultsStatus>,
    /// Who was refused last, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<LastRefusal>,
}

/// Results that are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultsStatus {
    /// How many.
    pub stored: u32,
    /// Their bytes.
    pub bytes: u64,
    /// The same for people, such as `3.4Mi`.
    #[serde(default)]
    pub size: String,
    /// How many of them miss something; which, and what, is in each result.
    #[serde(default)]
    pub incomplete: u32,
}

/// How full a limit is, in its fullest scope.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// The limit's name.
    pub name: String,
    /// What it counts over.
    pub scope: Scope,
    /// Its `maxActiveJobs`.
    pub max: u32,
    /// Active Jobs in the fullest scope.
    pub active: u32,
    /// Jobs that wait for a slot there.
    #[serde(default)]
    pub queued: u32,
    /// Grants whose Job nobody has seen yet.
    #[serde(default)]
    pub pending: u32,
    /// Which scope that is: `cluster`, a namespace, or `namespace/group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fullest: Option<String>,
}

/// The last refusal of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastRefusal {
    /// `namespace/name` of the refused Job.
    pub job: String,
    /// The message its author got.
    pub reason: String,
    /// When.
    pub time: Time,
}
