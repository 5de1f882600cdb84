//! `spec.stamp`: what the webhook sets on new Jobs.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::policy::schema;

/// Defaults and maxima that are set on new Jobs.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Seconds after which a finished Job is deleted (`spec.ttlSecondsAfterFinished`). Where a policy asks for results,
    /// the TTL starts once the result is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub ttl_seconds_after_finished: Option<Range>,
    /// Seconds that a Job may be active (`spec.activeDeadlineSeconds`). A Job without a deadline gets the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive_range_schema")]
    pub active_deadline_seconds: Option<Range>,
    /// Retries before a Job counts as failed (`spec.backoffLimit`). The apiserver sets 6 where the Job states none, so 6
    /// counts as not stated unless the Job has the annotation `job-handler/keep: backoffLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::range_schema")]
    pub backoff_limit: Option<Range>,
    /// Labels added to the Job and its pod template where the key is absent.
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
    /// Maximum amounts that the container may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Amount>,
    /// Amounts reserved for the container; Kubernetes uses the limits where absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Amount>,
}

/// An amount of a resource as written in YAML: `500m`, `4Gi`, or a number without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Amount(pub String);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum TextOrNumber {
            Text(String),
            Number(serde_json::Number),
        }
        Ok(Self(match TextOrNumber::deserialize(deserializer)? {
            TextOrNumber::Text(text) => text,
            TextOrNumber::Number(number) => number.to_string(),
        }))
    }
}

/// A default and a maximum for a numeric field of a Job. The schema keeps both within `int32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Range {
    /// Value for Jobs that state none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<i64>,
    /// Larger values are lowered to this maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
}
