//! `spec.cleanup`: when finished Jobs are deleted.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When finished Jobs are deleted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// When completed Jobs are deleted.
    #[serde(default)]
    pub succeeded_policy: CleanupPolicy,
    /// When failed Jobs are deleted.
    #[serde(default)]
    pub failed_policy: CleanupPolicy,
    /// Prunes each group to its newest Jobs; absent = groups are not pruned. It limits pruning only: a Job with
    /// `AfterHarvest` is deleted after its harvest even if it is the newest of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// How the pods of a pruned Job are deleted.
    #[serde(default)]
    pub propagation_policy: Propagation,
}

/// When a finished Job is deleted. Ordered by how long the Job stays, so that the maximum keeps longest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub enum CleanupPolicy {
    /// deletes the Job, with its pods, as soon as its result is stored.
    AfterHarvest,
    /// leaves the deletion to Kubernetes: the Job's TTL starts once its result is stored. A Job without a TTL stays.
    #[default]
    AfterTTL,
    /// keeps the Job: its TTL is removed once its result is stored. Pruning of its group still applies.
    Never,
}

/// How many Jobs of each group pruning keeps.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keep {
    /// Number of newest Jobs to keep, whatever their outcome.
    #[serde(default = "default_newest")]
    #[schemars(range(min = 1))]
    pub newest: u32,
    /// Number of newest completed Jobs to keep in addition.
    #[serde(default)]
    pub newest_succeeded: u32,
}

/// How a deleted Job's pods are deleted (`metav1.DeletionPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Propagation {
    /// deletes the pods first, then the Job.
    #[default]
    Foreground,
    /// deletes the Job at once; its pods are deleted afterwards.
    Background,
}

fn default_newest() -> u32 {
    1
}
