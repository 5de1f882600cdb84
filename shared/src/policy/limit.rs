//! `spec.limits` and `spec.failureBackoff`: when a Job is refused or queued.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A limit on active Jobs. A Job is active from its creation until it is finished or, while suspended, until its last
/// pod is gone.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Name of the limit, unique within the policy; refusals quote it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Maximum number of active Jobs in each scope; 0 admits none.
    #[schemars(range(min = 0))]
    pub max_active_jobs: u32,
    /// The scope in which active Jobs are counted.
    #[serde(default)]
    pub scope: Scope,
    /// What happens to a Job that exceeds the limit.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// The scope in which a limit counts active Jobs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
pub enum Scope {
    /// counts all selected Jobs of the cluster together; allowed in a ClusterJobPolicy only.
    Cluster,
    /// counts the selected Jobs of each namespace separately.
    #[default]
    Namespace,
    /// counts the selected Jobs of each group separately; Jobs without a group are not counted.
    Group,
}

/// What happens to a Job that exceeds a limit or comes before the end of a backoff.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WhenFull {
    /// refuses the Job with a message that gives the reason.
    #[default]
    Reject,
    /// creates the Job suspended and starts it when it may run, first in, first out.
    Queue,
}

/// How long a group waits after failed Jobs before its next Job may run.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.maxSeconds >= self.initialSeconds")
    .message("failureBackoff.maxSeconds must not be below failureBackoff.initialSeconds"))]
pub struct FailureBackoff {
    /// Seconds to wait after the first failure.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub initial_seconds: u32,
    /// Factor by which the wait grows with each further failure in a row.
    #[serde(default = "default_multiplier")]
    #[schemars(range(min = 1, max = 100))]
    pub multiplier: u32,
    /// Longest wait, in seconds. After twice this time without a Job, the failures are forgotten.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub max_seconds: u32,
    /// What happens to a Job that is created during the wait.
    #[serde(default)]
    pub action: WhenFull,
}

fn default_multiplier() -> u32 {
    2
}

/// `limits` is a list map keyed by name, so that server-side apply merges the limits of several field managers.
pub(crate) fn limits_schema(generator: &mut SchemaGenerator) -> Schema {
    let item = Limit::json_schema(generator);
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}
