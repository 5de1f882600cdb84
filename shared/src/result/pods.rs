//! Pods and containers in the manifest.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Node it ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// `status.phase`, such as `Succeeded`.
    pub phase: String,
    /// `status.reason`, such as `Evicted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `status.message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Reason of condition `DisruptionTarget`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<String>,
    /// Message of that condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption_message: Option<String>,
    /// Why it was not scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable: Option<String>,
    /// Completion index, of an indexed Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// It was deleted before the result was stored: its states are the last known ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Its containers: init, sidecar, main, ephemeral.
    pub containers: Vec<ContainerFacts>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerFacts {
    /// Name of the container; or `N more containers`, for those of a list that are left out.
    pub name: String,
    /// Init, sidecar, main or ephemeral container.
    pub kind: ContainerKind,
    /// Image as specified.
    pub image: String,
    /// Image as resolved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Whether the container passed its readiness probe.
    pub ready: bool,
    /// Number of restarts.
    pub restart_count: i32,
    /// Whether the container passed its startup probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    /// Current state.
    pub state: StateFacts,
    /// State before the last restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state: Option<StateFacts>,
    /// Its termination message may be the end of its log (`terminationMessagePolicy: FallbackToLogsOnError`); used during the
    /// harvest and not stored.
    #[serde(skip)]
    pub tells_by_log: bool,
    /// Its logs, of the current run and the previous one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogFacts>,
}

/// The kind of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// Runs before the others.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// One of `spec.containers`.
    #[default]
    Main,
    /// A debug container.
    Ephemeral,
}

/// A container's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateFacts {
    /// `waiting`, `running`, `terminated` or `unknown`.
    pub phase: String,
    /// Reason, such as `OOMKilled` or `ImagePullBackOff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Message; of a terminated one its termination message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Number of the signal that ended the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Time at which this run started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Time at which this run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The container runtime's ID of this run; used during the harvest and not stored.
    #[serde(skip)]
    pub id: String,
}

/// The log of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFacts {
    /// It is the run before the last restart.
    #[serde(default)]
    pub previous: bool,
    /// Length as written, bytes.
    pub length: u64,
    /// Bytes that are left out.
    #[serde(default)]
    pub left_out: u64,
    /// SHA-256 of the full log, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Why it, or a part of it, is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// It, or a part of it, is left out because it exceeds the policies' log budget.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The full log in an object store, if something is left out here.
    #[serde(rename = "whole", default, skip_serializing_if = "Option::is_none")]
    pub full: Option<FullLogObject>,
    /// Its position in the Job's stored logs: a log can contain text that looks like a heading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<Section>,
}

/// A full log in an object store, gzipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FullLogObject {
    /// URL of the object.
    pub url: String,
    /// Compressed size in bytes.
    pub bytes: u64,
}

/// A section of a Job's uncompressed logs: one run's log, without its heading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Section {
    /// Offset, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub bytes: u64,
}
