//! Pods and containers in the manifest.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFacts {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Node it ran on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Phase.
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
    /// Why it was not scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable: Option<String>,
    /// Completion index, of an indexed Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// It was gone when the result was made: its states are the last that were seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// Its containers: init, sidecar, main, ephemeral.
    pub containers: Vec<ContainerFacts>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerFacts {
    /// Name.
    pub name: String,
    /// Which kind.
    pub kind: ContainerKind,
    /// Image as asked for.
    pub image: String,
    /// Image as found.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_id: String,
    /// Ready.
    pub ready: bool,
    /// Restarts.
    pub restart_count: i32,
    /// Started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    /// State now.
    pub state: StateFacts,
    /// State before the last restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state: Option<StateFacts>,
    /// What is kept of its logs, of the last run and the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogFacts>,
}

/// Which kind of container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// Runs before the others.
    Init,
    /// An init container that stays (`restartPolicy: Always`).
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
    /// Signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// End.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The runtime's name for this run; tells one run from the next while they are captured, and is not stored.
    #[serde(skip)]
    pub id: String,
}

/// What is kept of one run's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogFacts {
    /// It is the run before the last restart.
    #[serde(default)]
    pub previous: bool,
    /// Length as written, bytes.
    pub length: u64,
    /// Bytes of it that were left out.
    #[serde(default)]
    pub left_out: u64,
    /// SHA-256 of all that was read, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
    /// Why it, or a part of it, could not be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Where all of it is, where something was left out.
    #[serde(rename = "whole", default, skip_serializing_if = "Option::is_none")]
    pub full: Option<FullLogObject>,
    /// Where it is in the Job's stored logs; a heading within a log cannot pass for one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<Section>,
}

/// All of a log, in an object store: gzipped; its length and digest, unpacked, are those of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FullLogObject {
    /// Where.
    pub url: String,
    /// Bytes there.
    pub bytes: u64,
}

/// A part of a Job's stored logs as they read: one run's log, without its heading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Section {
    /// Bytes before it.
    pub offset: u64,
    /// Bytes of it.
    pub bytes: u64,
}
