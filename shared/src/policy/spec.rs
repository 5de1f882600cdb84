//! The policy types. The CRDs are generated from them; `manifests/` holds the result.
//!
//! Everything that can be wrong in a policy is refused by the apiserver, by schema or CEL, with a message that
//! names the field; [`crate::policy::set`] therefore reads policies without judging them again.

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
#[schemars(transform = schema::describe_enum_values)]
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
#[schemars(transform = schema::describe_enum_values)]
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
    #[schemars(schema_with = "limits_schema")]
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

/// A CloudEvent receiver, by its name in the sink's configuration.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct CloudEventSink {
    /// Name in the sink's configuration.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::policy::cleanup::{Keep, Propagation};

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
