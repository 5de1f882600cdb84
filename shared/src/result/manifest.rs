//! The machine-readable part of a result: `result.json`. Its presence with a Job's uid is what «harvested» means.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    job::snapshot::Outcome,
    result::{
        failure::{Cause, Failure},
        pending_events::PendingEvents,
        pods::PodFacts,
        storage_kind::StorageKind,
    },
    text::{human_seconds, truncate},
};

/// Version of this schema; raised when a reader of an older one would be misled.
pub const SCHEMA_VERSION: u32 = 1;
/// Key of the manifest in the result's data.
pub const KEY: &str = "result.json";
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
    #[serde(rename = "told", default, skip_serializing_if = "Option::is_none")]
    pub public_line: Option<String>,
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
    pub cloud_events_pending: PendingEvents,
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
    pub fn note(&self, kind: StorageKind, result: &str, max: usize) -> String {
        let word = match self.outcome {
            Outcome::Completed => "Completed",
            Outcome::Failed => "Failed",
        };
        let after =
            self.job.duration_seconds.map_or(String::new(), |s| format!(" after {}", human_seconds(s)));
        let reason = if self.reason.is_empty() { String::new() } else { format!(" ({})", self.reason) };
        let tail = format!(". Result: {} {}/{result}", kind.kind(), self.job.namespace);
        let lost = match self.completeness.lost.len() {
            0 => String::new(),
            n => format!("; {n} part{} of it could not be kept", if n == 1 { "" } else { "s" }),
        };
        let mut note = format!("{word}{after}{reason}");
        let line = self.public_line();
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
    pub fn public_line(&self) -> &str {
        self.public_line.as_deref().unwrap_or(&self.decisive)
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
            self.indexes_not_listed = crate::text::ranges(not_listed.clone());
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
