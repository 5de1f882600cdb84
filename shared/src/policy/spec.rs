//! The policy types. The CRDs are generated from them; `manifests/` holds the result.
//!
//! Everything that can be wrong in a policy is refused by the apiserver, by schema or CEL, with a message that
//! names the field; [`crate::policy::set`] therefore reads policies without judging them again.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::policy::{bytes::Bytes, schema, status::PolicyStatus};

/// A policy for the Jobs of every namespace it selects.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "job-handler.io",
    version = "v1alpha1",
    kind = "ClusterJobPolicy",
    plural = "clusterjobpolicies",
    shortname = "cjp",
    category = "job-handler",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Stamps, limits, harvests and cleans up the Jobs it selects, in every namespace it selects.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Limits",
        type_ = "string",
        json_path = ".status.usage",
        description = "active/max of each limit's fullest scope"
    ),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queuedJobs",
        description = "Jobs that wait for a slot"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Results",
        type_ = "integer",
        json_path = ".status.results.stored",
        description = "stored results that this policy asked for"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.results.size",
        description = "their bytes"
    ),
    printcolumn(
        name = "Incomplete",
        type_ = "integer",
        json_path = ".status.results.incomplete",
        description = "how many of them miss something"
    ),
    printcolumn(
        name = "Last-Refused",
        type_ = "date",
        json_path = ".status.lastRefusal.time",
        description = "how long ago it last refused a Job"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterJobPolicySpec {
    /// Namespaces this policy applies to; absent = all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector_schema")]
    pub namespace_selector: Option<LabelSelector>,
    /// What to do with the Jobs.
    #[serde(flatten)]
    pub policy: PolicySpec,
}

/// A policy for the Jobs of its own namespace.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "job-handler.io",
    version = "v1alpha1",
    kind = "JobPolicy",
    plural = "jobpolicies",
    shortname = "jp",
    category = "job-handler",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Stamps, limits, harvests and cleans up the Jobs it selects in its own namespace.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Limits",
        type_ = "string",
        json_path = ".status.usage",
        description = "active/max of each limit's fullest scope"
    ),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queuedJobs",
        description = "Jobs that wait for a slot"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Results",
        type_ = "integer",
        json_path = ".status.results.stored",
        description = "stored results that this policy asked for"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.results.size",
        description = "their bytes"
    ),
    printcolumn(
        name = "Incomplete",
        type_ = "integer",
        json_path = ".status.results.incomplete",
        description = "how many of them miss something"
    ),
    printcolumn(
        name = "Last-Refused",
        type_ = "date",
        json_path = ".status.lastRefusal.time",
        description = "how long ago it last refused a Job"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = "1"
    )
)]
#[x_kube(validation = Rule::new("!has(self.limits) || self.limits.all(l, !has(l.scope) || l.scope != 'Cluster')")
    .message("limits[].scope: Cluster is for a ClusterJobPolicy; a JobPolicy counts over Namespace or Group"))]
#[serde(rename_all = "camelCase")]
pub struct JobPolicySpec {
    /// What to do with the Jobs.
    #[serde(flatten)]
    pub policy: PolicySpec,
}

/// What both kinds of policy say.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Jobs this policy applies to, by their labels; absent = every Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector_schema")]
    pub job_selector: Option<LabelSelector>,
    /// Whether to act, or only to tell what would be done.
    #[serde(default)]
    pub mode: Mode,
    /// Defaults and maxima set on new Jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// Which Jobs are runs of the same thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupSpec>,
    /// How many Jobs may be active at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::limits_schema")]
    pub limits: Vec<Limit>,
    /// How long a group waits after failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_backoff: Option<FailureBackoff>,
    /// What is kept of finished Jobs; absent = this policy asks for no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Results>,
    /// When finished Jobs go; absent = this policy has no say in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<Cleanup>,
    /// Names of CloudEvent receivers in the sink's configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub cloud_event_sinks: Vec<CloudEventSink>,
}

/// Whether a policy acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Mode {
    /// Decide and act.
    #[default]
    Enforce,
    /// Decide and tell; change, refuse, delete nothing.
    Warn,
}

/// Defaults and maxima set on new Jobs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Seconds that a finished Job stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub ttl_seconds_after_finished: Option<Range>,
    /// Seconds that a Job may be active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_range_schema")]
    pub active_deadline_seconds: Option<Range>,
    /// Retries before a Job counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub backoff_limit: Option<Range>,
    /// Labels for the Job and its pods, where they have no such label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// Requests and limits for containers that state neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::container_resources_schema")]
    pub container_resources: Option<ContainerResources>,
}

/// Requests and limits of a container, by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ContainerResources {
    /// The most that it may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Amount>,
    /// What is set aside for it; as the limits where absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Amount>,
}

/// An amount of a resource, as people write it: `500m`, `4Gi`, or a number without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Amount(pub String);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Number(serde_json::Number),
        }
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::Text(text) => text,
            Written::Number(number) => number.to_string(),
        }))
    }
}

/// A default and a maximum; values are those of a Job's field, so they fit an `int32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Range {
    /// Set where the Job states none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<i64>,
    /// Never more than this, whoever states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}

/// Which Jobs are runs of the same thing.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type == 'Labels' ? has(self.labelKeys) && size(self.labelKeys) > 0 : !has(self.labelKeys) || size(self.labelKeys) == 0")
    .message("group.labelKeys: name at least one label key with type Labels, and none with type Owner"))]
pub struct GroupSpec {
    /// What makes Jobs runs of the same thing.
    #[serde(rename = "type")]
    pub by: GroupBy,
    /// With `Labels`: Jobs with the same values of all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::label_keys_schema")]
    pub label_keys: Vec<String>,
}

/// What makes Jobs runs of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum GroupBy {
    /// The same values of some labels.
    Labels,
    /// The same controlling owner (for example a CronJob).
    Owner,
}

/// How many Jobs may be active at once.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Name within the policy; refusals quote it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// At most this many Jobs are active in each scope; 0 admits none.
    #[schemars(range(min = 0))]
    pub max_active_jobs: u32,
    /// What the limit counts over.
    #[serde(default)]
    pub scope: Scope,
    /// What becomes of a Job over the limit.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What a limit counts over.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema,
)]
pub enum Scope {
    /// All selected Jobs of the cluster together.
    Cluster,
    /// The selected Jobs of each namespace.
    #[default]
    Namespace,
    /// The selected Jobs of each group.
    Group,
}

/// What becomes of a Job over a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WhenFull {
    /// Its creation is refused, with the reason.
    #[default]
    Reject,
    /// It is created suspended and started when a slot is free, first in, first out.
    Queue,
}

/// How long a group waits after failures.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.maxSeconds >= self.initialSeconds")
    .message("failureBackoff.maxSeconds must not be below failureBackoff.initialSeconds"))]
pub struct FailureBackoff {
    /// Seconds after the first failure.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub initial_seconds: u32,
    /// Factor for each further failure in a row.
    #[serde(default = "default_multiplier")]
    #[schemars(range(min = 1, max = 100))]
    pub multiplier: u32,
    /// Seconds it never goes beyond.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub max_seconds: u32,
    /// What becomes of a Job that comes too early.
    #[serde(default)]
    pub action: WhenFull,
}

/// What is kept of finished Jobs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// Kind of object the result is stored in. Secret needs the opt-in rights of `manifests/overlays/secrets`: without them
    /// only how a Job ended is kept, in a ConfigMap, without logs and termination messages.
    #[serde(default)]
    pub storage_type: StorageType,
    /// Seconds that results stay.
    #[serde(default = "default_results_ttl")]
    #[schemars(range(min = 0))]
    pub ttl_seconds: u64,
    /// Results kept per group.
    #[serde(default = "default_max_per_group")]
    #[schemars(range(min = 1))]
    pub max_per_group: u32,
    /// Bytes of results kept per namespace.
    #[serde(default = "default_max_bytes")]
    pub max_bytes_per_namespace: Bytes,
    /// Seconds that a finished Job waits for its harvest before its TTL strikes.
    #[serde(default = "default_harvest_deadline")]
    #[schemars(range(min = 60, max = 2_147_483_647))]
    pub harvest_deadline_seconds: u32,
    /// What is kept of the logs.
    #[serde(default)]
    pub logs: Logs,
}

/// Kind of object results are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StorageType {
    /// ConfigMaps.
    #[default]
    ConfigMap,
    /// Secrets; needs the opt-in rights of `manifests/overlays/secrets`. Without them only how a Job ended is kept, without
    /// logs and messages.
    Secret,
}

/// What is kept of the logs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// Which part.
    #[serde(default)]
    pub mode: LogsMode,
    /// Bytes per container, at most 16Mi.
    #[serde(default = "default_bytes_per_container")]
    #[schemars(schema_with = "schema::bytes_per_container_schema")]
    pub max_bytes_per_container: Bytes,
    /// Bytes per Job, at most 64Mi.
    #[serde(default = "default_bytes_per_job")]
    #[schemars(schema_with = "schema::bytes_per_job_schema")]
    pub max_bytes_per_job: Bytes,
}

impl Logs {
    /// The most that a policy may ask for per container: one namespace's wishes must not fill the memory of all.
    pub const PER_CONTAINER_MAX: Bytes = Bytes(16 << 20);
    /// The most that a policy may ask for per Job.
    pub const PER_JOB_MAX: Bytes = Bytes(64 << 20);

    /// Bytes per container; policies that were stored before the schema had a maximum are held to it here.
    pub fn per_container(&self) -> usize {
        self.max_bytes_per_container.min(Self::PER_CONTAINER_MAX).as_usize()
    }

    /// Bytes per Job, in the same way.
    pub fn per_job(&self) -> usize {
        self.max_bytes_per_job.min(Self::PER_JOB_MAX).as_usize()
    }
}

/// Which part of the logs is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LogsMode {
    /// The beginning and the end, with a marked gap where it is too much.
    #[default]
    HeadAndTail,
    /// None: container states only.
    None,
}

/// When finished Jobs go.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// Of completed Jobs.
    #[serde(default)]
    pub succeeded_policy: CleanupPolicy,
    /// Of failed Jobs.
    #[serde(default)]
    pub failed_policy: CleanupPolicy,
    /// How many Jobs of each group stay; absent = groups are not pruned. It holds pruning back, not the policies above:
    /// a Job with AfterHarvest goes after its harvest, be it the newest of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// How a pruned Job's pods go.
    #[serde(default)]
    pub propagation_policy: Propagation,
}

/// When a finished Job goes. Ordered: the later one keeps longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub enum CleanupPolicy {
    /// As soon as its result is stored.
    AfterHarvest,
    /// When its TTL has passed.
    #[default]
    AfterTTL,
    /// Not by us, nor by a TTL: it is taken off the Job once the result is stored.
    Never,
}

/// How many Jobs of each group stay.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keep {
    /// The newest ones, whatever their outcome.
    #[serde(default = "default_newest")]
    #[schemars(range(min = 1))]
    pub newest: u32,
    /// Besides, the newest ones that completed.
    #[serde(default)]
    pub newest_succeeded: u32,
}

/// How a deleted Job's pods go (`metav1.DeletionPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Propagation {
    /// Pods first, then the Job.
    #[default]
    Foreground,
    /// The Job first.
    Background,
}

/// A CloudEvent receiver, by its name in the sink's configuration.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct CloudEventSink {
    /// Name in the sink's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

impl Default for Results {
    fn default() -> Self {
        Self {
            storage_type: StorageType::default(),
            ttl_seconds: default_results_ttl(),
            max_per_group: default_max_per_group(),
            max_bytes_per_namespace: default_max_bytes(),
            harvest_deadline_seconds: default_harvest_deadline(),
            logs: Logs::default(),
        }
    }
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            mode: LogsMode::default(),
            max_bytes_per_container: default_bytes_per_container(),
            max_bytes_per_job: default_bytes_per_job(),
        }
    }
}

fn default_multiplier() -> u32 {
    2
}
fn default_results_ttl() -> u64 {
    7 * 24 * 3600
}
fn default_max_per_group() -> u32 {
    20
}
fn default_max_bytes() -> Bytes {
    Bytes(64 << 20)
}
fn default_harvest_deadline() -> u32 {
    7 * 24 * 3600
}
fn default_bytes_per_container() -> Bytes {
    Bytes(256 << 10)
}
fn default_bytes_per_job() -> Bytes {
    Bytes(4 << 20)
}
fn default_newest() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    /// The structural schema has to hold what serde reads: a flattened spec must show every field.
    #[test]
    fn crds_list_every_field_of_the_page() {
        for crd in [ClusterJobPolicy::crd(), JobPolicy::crd()] {
            let crd = serde_json::to_value(&crd).unwrap();
            let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            for field in [
                "jobSelector",
                "mode",
                "stamp",
                "group",
                "limits",
                "failureBackoff",
                "results",
                "cleanup",
                "cloudEventSinks",
            ] {
                assert!(spec["properties"][field].is_object(), "{field} in {spec:#}");
            }
            assert_eq!(spec["properties"]["limits"]["x-kubernetes-list-map-keys"][0], "name");
            assert!(!crd.to_string().contains("$ref"), "not structural");
        }
    }

    #[test]
    fn defaults_are_those_of_the_page() {
        let spec: JobPolicySpec = serde_json::from_str(r#"{"results":{},"cleanup":{"keep":{}}}"#).unwrap();
        let results = spec.policy.results.unwrap();
        assert_eq!(results, Results::default());
        assert_eq!((results.ttl_seconds, results.max_per_group), (604_800, 20));
        assert_eq!(results.max_bytes_per_namespace.to_string(), "64Mi");
        assert_eq!(results.logs.max_bytes_per_container.to_string(), "256Ki");
        assert_eq!(results.logs.max_bytes_per_job.to_string(), "4Mi");
        let cleanup = spec.policy.cleanup.unwrap();
        assert_eq!(cleanup.keep, Some(Keep { newest: 1, newest_succeeded: 0 }));
        assert_eq!(cleanup.propagation_policy, Propagation::Foreground);
    }
}
