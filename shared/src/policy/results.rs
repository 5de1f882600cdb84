//! `spec.results`: what is stored of finished Jobs, and for how long.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::policy::bytes::Bytes;

/// What is stored of finished Jobs, and for how long.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// Kind of object that stores the results.
    #[serde(default)]
    pub storage_type: StorageType,
    /// Seconds after which a result is deleted.
    #[serde(default = "default_results_ttl")]
    #[schemars(range(min = 0))]
    pub ttl_seconds: u64,
    /// Maximum number of results per group; the oldest are deleted first.
    #[serde(default = "default_max_per_group")]
    #[schemars(range(min = 1))]
    pub max_per_group: u32,
    /// Maximum size of all results of a namespace, up to what the operator allows; the oldest are deleted first, the
    /// newest of a group last.
    #[serde(default = "default_max_bytes")]
    pub max_bytes_per_namespace: Bytes,
    /// Seconds that a finished Job waits for its result to be stored, also for logs that a node does not deliver. After that,
    /// its TTL applies even without a result.
    #[serde(default = "default_harvest_deadline")]
    #[schemars(range(min = 60, max = 2_147_483_647))]
    pub harvest_deadline_seconds: u32,
    /// How much of the logs is stored.
    #[serde(default)]
    pub logs: Logs,
}

/// Kind of object that stores results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StorageType {
    /// stores results in ConfigMaps.
    #[default]
    ConfigMap,
    /// stores results in Secrets. This needs the rights of `manifests/overlays/secrets`; without them only how the Job
    /// ended is stored, in a ConfigMap, without logs and termination messages.
    Secret,
}

/// How much of the logs is stored.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// Which part of each log is stored.
    #[serde(default)]
    pub mode: LogsMode,
    /// Maximum size of each container's log, at most 16Mi.
    #[serde(default = "default_bytes_per_container")]
    #[schemars(schema_with = "bytes_per_container_schema")]
    pub max_bytes_per_container: Bytes,
    /// Maximum size of all logs of a Job, at most 64Mi.
    #[serde(default = "default_bytes_per_job")]
    #[schemars(schema_with = "bytes_per_job_schema")]
    pub max_bytes_per_job: Bytes,
}

/// Which part of a log is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LogsMode {
    /// stores the beginning and the end of each log; where the log exceeds its maximum size, a line marks the gap.
    #[default]
    HeadAndTail,
    /// stores no logs, only the states of the containers.
    None,
}

impl Logs {
    /// The schema's maximum per container: one namespace must not fill the sink's memory.
    pub(crate) const PER_CONTAINER_MAX: Bytes = Bytes(16 << 20);
    /// The schema's maximum per Job.
    pub(crate) const PER_JOB_MAX: Bytes = Bytes(64 << 20);

    /// Bytes per container. Applies the maximum again, for policies that were stored before the schema had one.
    pub fn per_container(&self) -> usize {
        self.max_bytes_per_container.min(Self::PER_CONTAINER_MAX).as_usize()
    }

    /// Bytes per Job, with the maximum applied again.
    pub fn per_job(&self) -> usize {
        self.max_bytes_per_job.min(Self::PER_JOB_MAX).as_usize()
    }
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

fn bytes_per_container_schema(generator: &mut SchemaGenerator) -> Schema {
    at_most(generator, Logs::PER_CONTAINER_MAX)
}

fn bytes_per_job_schema(generator: &mut SchemaGenerator) -> Schema {
    at_most(generator, Logs::PER_JOB_MAX)
}

/// An amount of bytes with a maximum. CEL's `quantity()` knows all units of [`Bytes`].
fn at_most(generator: &mut SchemaGenerator, max: Bytes) -> Schema {
    let mut schema = Bytes::json_schema(generator);
    let rule =
        format!("type(self) == int ? self <= {} : quantity(self).compareTo(quantity('{max}')) <= 0", max.0);
    let message = format!("must be at most {max}");
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        serde_json::json!([{"rule": rule, "message": message}]),
    );
    schema
}
