//! The machine-readable part of a result: `result.json`. Its presence with a Job's uid is what «harvested» means.

use std::collections::BTreeMap;

use jiff::Timestamp;
use job_handler_shared::job::snapshot::Outcome;
use job_handler_shared::text::human_seconds;
use serde::{Deserialize, Serialize};

use crate::{
    cloudevents::event::Pending,
    harvest::{failure::Failure, log_sections},
    result::storage::Kind,
};

/// Version of this schema; raised when a reader of an older one would be misled.
pub const SCHEMA_VERSION: u32 = 1;
/// Key of the manifest in the result's data.
pub const KEY: &str = "result.json";
/// Label on a result while announcements of it are pending, so that they are found without reading every result.
pub const PENDING: &str = "job-handler/announce";
/// Label on shards: the uid of the Job, as on the manifest, but never [`job_handler_shared::keys::CREATED`].
pub const SHARD: &str = "job-handler/shard";
/// `result.json` stays below this, bytes; pods beyond are counted, not listed.
pub const MAX_BYTES: usize = 200 << 10;

/// All that is known of a finished Job.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Which Job.
    pub job: JobFacts,
    /// How it ended.
    pub outcome: Outcome,
    /// Reason of the Job's condition, such as `BackoffLimitExceeded`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Message of the Job's condition.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What a failure was: the word of metrics and alerts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The same, by level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The one line that explains the outcome best.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub decisive: String,
    /// What Events and CloudEvents say in its place: without what containers wrote, of a result that is held in a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    /// Its pods; failed ones first.
    pub pods: Vec<PodFacts>,
    /// Pods that were seen but are not listed, for want of room.
    #[serde(default)]
    pub pods_not_listed: usize,
    /// Completion indexes of those, where they have any: `0,3-5`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub indexes_not_listed: String,
    /// What could not be had.
    pub completeness: Completeness,
    /// Where the logs are; none = none were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogPlace>,
    /// Logs that are in an object store, whole; none = all that is kept is in the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectsFacts>,
    /// Event reasons that have yet to be told.
    #[serde(default)]
    pub announcements_pending: Vec<String>,
    /// CloudEvents that have yet to be told: receiver -> phases, in their order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cloud_events_pending: Pending,
}

/// Which Job a result is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Group, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its labels, as far as there is room for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When the condition was set.
    pub finished: Timestamp,
    /// From start to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<i64>,
    /// Pods that succeeded, by the Job's own count.
    pub succeeded_pods: i32,
    /// Pods that failed, by the Job's own count.
    pub failed_pods: i32,
}

/// What a failure was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The deadline passed.
    Timeout,
    /// A container was killed for its memory, and said so: exit code 137 alone is not that.
    Oom,
    /// A pod was evicted, or lost with its node.
    Evicted,
    /// A pod had to make room for a more important one.
    Preempted,
    /// No node would take the pod.
    Unschedulable,
    /// An image could not be had.
    Image,
    /// A container could not be made, or started, as it was asked for.
    Config,
    /// Everything else: an exit code, or a signal.
    #[default]
    Error,
}

impl Cause {
    /// The word in metrics: of the four that dashboards know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Oom => "oom",
            Self::Evicted | Self::Preempted => "evicted",
            Self::Unschedulable | Self::Image | Self::Config | Self::Error => "error",
        }
    }
}

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<WholeLog>,
    /// Where it is in the Job's stored logs; a heading within a log cannot pass for one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<Section>,
}

/// All of a log, in an object store: gzipped; its length and digest, unpacked, are those of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WholeLog {
    /// Where.
    pub url: String,
    /// Bytes there.
    pub bytes: u64,
}

/// What a Job has in an object store: pods that are not listed for want of room have their logs there, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectsFacts {
    /// The folder that holds them, as `<pod>/<container>-<run>.log.gz`.
    pub url: String,
    /// How many.
    pub count: usize,
    /// Their bytes.
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

/// What could not be had, in one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Completeness {
    /// Nothing is missing.
    pub complete: bool,
    /// What is, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// Where the logs are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPlace {
    /// Key in what holds the manifest, and in each shard.
    pub key: String,
    /// `plain` or `gzip`.
    pub encoding: Encoding,
    /// Bytes as they read.
    pub bytes: usize,
    /// SHA-256 of them, hex.
    pub sha256: String,
    /// What holds the stored bytes, in order, of the same kind as what holds the manifest; empty = that holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Shard>,
}

/// How logs are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As they are.
    #[default]
    Plain,
    /// RFC 1952.
    Gzip,
}

/// One piece of the stored bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shard {
    /// Name of what holds it.
    pub name: String,
    /// Bytes in it.
    pub bytes: usize,
    /// SHA-256 of them, hex.
    pub sha256: String,
}

impl Manifest {
    /// The Event's note, at most `max` bytes: outcome, reason, decisive line, duration and where the result is.
    pub fn note(&self, kind: Kind, result: &str, max: usize) -> String {
        let word = match self.outcome {
            Outcome::Completed => "Completed",
            Outcome::Failed => "Failed",
        };
        let after =
            self.job.duration_seconds.map_or(String::new(), |s| format!(" after {}", human_seconds(s)));
        let reason = if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        let tail = format!(". Result: {} {}/{result}", kind.name(), self.job.namespace);
        let lost = match self.completeness.lost.len() {
            0 => String::new(),
            n => format!("; {n} part{} of it could not be kept", if n == 1 { "" } else { "s" }),
        };
        let mut note = format!("{word}{after}{reason}");
        let line = self.line_to_tell();
        if !line.is_empty() {
            note.push_str(": ");
            note.push_str(line);
        }
        let room = max.saturating_sub(tail.len() + lost.len());
        truncate(&mut note, room);
        // Messages of others end in a full stop, or do not.
        note.truncate(note.trim_end_matches(['.', ' ']).len());
        note + &tail + &lost
    }

    /// The one line that explains the outcome best, as everyone may read it.
    pub fn line_to_tell(&self) -> &str {
        self.told.as_deref().unwrap_or(&self.decisive)
    }

    /// The JSON text, with as many pods listed as fit in [`MAX_BYTES`].
    ///
    /// # Errors
    /// Never for values of these types; serde's word for it is passed on.
    pub fn to_json(&mut self) -> serde_json::Result<String> {
        let mut not_listed = Vec::new();
        loop {
            let text = serde_json::to_string(self)?;
            if text.len() <= MAX_BYTES || (self.pods.is_empty() && self.completeness.lost.is_empty()) {
                return Ok(text);
            }
            // Those that explain least; a quarter at a time, so that much of the room is used.
            let keep = self.pods.len() * 3 / 4;
            self.pods_not_listed += self.pods.len() - keep;
            not_listed.extend(self.pods.drain(keep..).filter_map(|pod| pod.index));
            self.indexes_not_listed = log_sections::ranges(not_listed.clone());
            // As for what was lost, each line is of many pods already.
            if keep < 16 {
                let lines = self.completeness.lost.len() / 2;
                self.completeness.lost.truncate(lines);
                self.indexes_not_listed.clear();
            }
            self.completeness.complete = false;
        }
    }
}

/// Cuts `text` to at most `max` bytes at a character's edge, with a mark.
pub fn truncate(text: &mut String, max: usize) {
    const MARK: &str = "…";
    if text.len() > max {
        let mut end = max.saturating_sub(MARK.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
}
