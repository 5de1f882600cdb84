//! The two CRDs of policies. `manifests/crds` is generated from these types; their doc comments become the descriptions
//! that `kubectl explain` shows.
//!
//! The apiserver rejects invalid policies, by schema or CEL, with a message that names the field. The rest of the code
//! therefore does not validate policies again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{
    cleanup::Cleanup,
    limit::{FailureBackoff, Limit, limits_schema},
    results::Results,
    schema,
    stamp::Stamp,
    status::PolicyStatus,
};

/// A policy for Jobs in every namespace that it selects.
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
        description = "Used and maximum slots of each limit, in its fullest scope, and what holds them but running Jobs"
    ),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queuedJobs",
        description = "Jobs that wait for a slot of a limit"
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
        description = "Stored results of the selected Jobs"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.results.size",
        description = "Total size of these results"
    ),
    printcolumn(
        name = "Incomplete",
        type_ = "integer",
        json_path = ".status.results.incomplete",
        description = "Results that lack a log or another part"
    ),
    printcolumn(
        name = "Last-Refused",
        type_ = "date",
        json_path = ".status.lastRefusal.time",
        description = "Time since this policy last refused a Job"
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
#[schemars(transform = schema::describe_enum_values)]
pub struct ClusterJobPolicySpec {
    /// Namespaces that this policy applies to, selected by their labels; absent = all namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector_schema")]
    pub namespace_selector: Option<LabelSelector>,
    /// The part that both kinds of policy share.
    #[serde(flatten)]
    pub policy: PolicySpec,
}

/// A policy for Jobs in its own namespace.
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
        description = "Used and maximum slots of each limit, in its fullest scope, and what holds them but running Jobs"
    ),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queuedJobs",
        description = "Jobs that wait for a slot of a limit"
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
        description = "Stored results of the selected Jobs"
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.results.size",
        description = "Total size of these results"
    ),
    printcolumn(
        name = "Incomplete",
        type_ = "integer",
        json_path = ".status.results.incomplete",
        description = "Results that lack a log or another part"
    ),
    printcolumn(
        name = "Last-Refused",
        type_ = "date",
        json_path = ".status.lastRefusal.time",
        description = "Time since this policy last refused a Job"
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
#[schemars(transform = schema::describe_enum_values)]
pub struct JobPolicySpec {
    /// The part that both kinds of policy share.
    #[serde(flatten)]
    pub policy: PolicySpec,
}

/// The part of the spec that both kinds of policy share.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySpec {
    /// Jobs that this policy applies to, selected by their labels; absent = all Jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector_schema")]
    pub job_selector: Option<LabelSelector>,
    /// Whether the policy acts, or only reports what it would do.
    #[serde(default)]
    pub mode: Mode,
    /// Defaults and maxima that are set on new Jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// How Jobs are grouped. Group limits, failure backoff, `results.maxPerGroup` and pruning apply to each group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupSpec>,
    /// Limits on the number of active Jobs; a Job must fit all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "limits_schema")]
    pub limits: Vec<Limit>,
    /// How long a group waits after failed Jobs before its next Job may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_backoff: Option<FailureBackoff>,
    /// What is stored of finished Jobs; absent = this policy asks for no results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Results>,
    /// When finished Jobs are deleted; absent = this policy leaves them to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanup: Option<Cleanup>,
    /// CloudEvents receivers that are notified about the selected Jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub cloud_event_sinks: Vec<CloudEventSink>,
}

/// Whether a policy acts, or only reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Mode {
    /// applies the policy.
    #[default]
    Enforce,
    /// changes, refuses, stores and deletes nothing. Reports what the policy would do in admission warnings, Events
    /// (`JobWouldBeRefused`) and metrics.
    Warn,
}

/// How Jobs are grouped. Jobs of one namespace with the same group are runs of the same work.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type == 'Labels' ? has(self.labelKeys) && size(self.labelKeys) > 0 : !has(self.labelKeys) || size(self.labelKeys) == 0")
    .message("group.labelKeys: name at least one label key with type Labels, and none with type Owner"))]
pub struct GroupSpec {
    /// What identifies the group of a Job.
    #[serde(rename = "type")]
    pub by: GroupBy,
    /// Label keys, for type `Labels`: Jobs with equal values for all of these keys form a group. A Job that lacks one of
    /// them, or has it empty, has no group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::label_keys_schema")]
    pub label_keys: Vec<String>,
}

/// What identifies the group of a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
pub enum GroupBy {
    /// groups Jobs by the values of their labels `labelKeys`.
    Labels,
    /// groups Jobs by the kind and name of their controlling owner, such as a CronJob.
    Owner,
}

/// A CloudEvents receiver from the configuration of the sink.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct CloudEventSink {
    /// Name of the receiver in the configuration of the sink.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::policy::cleanup::{Keep, Propagation};

    /// A flattened spec must still show every field in the structural schema.
    #[test]
    fn crds_have_every_field() {
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
    fn absent_fields_get_the_documented_defaults() {
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
