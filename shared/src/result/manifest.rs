//! The manifest of a result, `result.json`. Users may be able to edit it: [`Manifest::parse`], which alone reads it, takes
//! nothing from it that decides where an effect lands.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

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

/// Version of this schema, increased when readers of an older version would misread it.
pub const SCHEMA_VERSION: u32 = 1;
/// Key of the manifest in the result's data.
pub const KEY: &str = "result.json";
/// Maximum size of `result.json`, bytes; pods beyond it are counted, not listed.
pub const MAX_BYTES: usize = 200 << 10;

/// Everything about a finished Job.
///
/// It is not `Deserialize`: `remote` makes what is derived a function of its own, which [`Manifest::parse`] calls.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The Job.
    pub job: JobFacts,
    /// The outcome.
    pub outcome: Outcome,
    /// Reason of the Job's condition, such as `BackoffLimitExceeded`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Message of the Job's condition.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The overall cause of a failure, as in metrics and alerts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The causes by level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The line that explains the outcome best.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub decisive: String,
    /// For a result in a Secret: the same without what containers wrote, for Events and CloudEvents.
    #[serde(rename = "told", default, skip_serializing_if = "Option::is_none")]
    pub public_line: Option<String>,
    /// Its pods; failed ones first.
    pub pods: Vec<PodFacts>,
    /// The number of pods that are not listed because of the maximum size.
    #[serde(default)]
    pub pods_not_listed: usize,
    /// Their completion indexes, if they have any: `0,3-5`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub indexes_not_listed: String,
    /// What is missing.
    pub completeness: Completeness,
    /// Where the logs are; none if no policy requests logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogPlace>,
    /// Full logs in an object store, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectsFacts>,
    /// Reasons of Events that are not published yet.
    #[serde(default)]
    pub announcements_pending: Vec<String>,
    /// CloudEvents that are not delivered yet: receiver -> phases, in order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cloud_events_pending: PendingEvents,
}

/// The Job of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobFacts {
    /// `metadata.namespace`. Written for readers and never read back: it is that of the object that holds the manifest.
    #[serde(skip_deserializing)]
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Group, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its labels, up to a maximum size.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// `status.startTime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Time of the terminal condition.
    pub finished: Timestamp,
    /// Seconds from start to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<i64>,
    /// Pods that succeeded, by the Job's own count.
    pub succeeded_pods: i32,
    /// Pods that failed, by the Job's own count.
    pub failed_pods: i32,
}

/// A Job's full logs in an object store, including those of pods that are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectsFacts {
    /// URL of their folder; each is `<pod>/<container>-<run>.log.gz` below it.
    pub url: String,
    /// Number of logs.
    pub count: usize,
    /// Total size in bytes.
    pub bytes: u64,
}

/// What is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Completeness {
    /// Nothing is missing.
    pub complete: bool,
    /// Each loss with its reason: what should be there and could not be kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
    /// Each log that exceeds the policies' log budget, so that a part of it is left out, as they ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<String>,
}

impl Completeness {
    /// The number of lines about what was left out on purpose. Results of older sinks have none, but are not complete; nor is
    /// a result that does not list all of its pods.
    pub fn truncated_count(&self) -> usize {
        let unnamed = !self.complete && self.lost.is_empty();
        self.truncated.len().max(usize::from(unnamed))
    }
}

/// Where the logs are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPlace {
    /// Key in the object with the manifest, and in each shard.
    pub key: String,
    /// `plain` or `gzip`.
    pub encoding: Encoding,
    /// Uncompressed size in bytes.
    pub bytes: usize,
    /// SHA-256 of the uncompressed logs, hex.
    pub sha256: String,
    /// The shards in order, of the same kind as the object with the manifest; empty if that object has the logs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Shard>,
}

/// How logs are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Logs are stored as they are.
    #[default]
    Plain,
    /// Logs are compressed with gzip (RFC 1952).
    Gzip,
}

/// One part of the stored logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shard {
    /// Name of its object.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// SHA-256 of them, hex.
    pub sha256: String,
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl Manifest {
    /// Reads the manifest of an object in this namespace. The namespace that the text itself states is not read, so that no
    /// content can move an effect to another namespace.
    ///
    /// # Errors
    /// If the text is not a manifest.
    pub fn parse(namespace: &str, text: &[u8]) -> serde_json::Result<Self> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let mut manifest = Self::deserialize(&mut reader)?;
        reader.end()?;
        namespace.clone_into(&mut manifest.job.namespace);
        Ok(manifest)
    }

    /// The note of an Event, at most `max` bytes: outcome, reason, decisive line, duration and the name of the result.
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
        // Some messages end in a full stop already.
        note.truncate(note.trim_end_matches(['.', ' ']).len());
        note + &tail + &lost
    }

    /// The line that explains the outcome best, without anything that only readers of Secrets may see.
    pub fn public_line(&self) -> &str {
        self.public_line.as_deref().unwrap_or(&self.decisive)
    }

    /// The JSON text, with as many pods listed as fit in [`MAX_BYTES`].
    ///
    /// # Errors
    /// Never for values of these types.
    pub fn to_json(&mut self) -> serde_json::Result<String> {
        let mut not_listed = Vec::new();
        loop {
            let text = serde_json::to_string(self)?;
            if text.len() <= MAX_BYTES
                || (self.pods.is_empty()
                    && self.completeness.lost.is_empty()
                    && self.completeness.truncated.is_empty())
            {
                return Ok(text);
            }
            // The least relevant pods, a quarter at a time, so that little space stays unused.
            let keep = self.pods.len() * 3 / 4;
            self.pods_not_listed += self.pods.len() - keep;
            not_listed.extend(self.pods.drain(keep..).filter_map(|pod| pod.index));
            self.indexes_not_listed = crate::text::ranges(not_listed.clone());
            // With so few pods left, the lists of losses must be what is too long.
            if keep < 16 {
                for lines in [&mut self.completeness.lost, &mut self.completeness.truncated] {
                    lines.truncate(lines.len() / 2);
                }
                self.indexes_not_listed.clear();
            }
            self.completeness.complete = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_has_the_namespace_of_its_object() {
        let text = json!({"schemaVersion": 1, "outcome": "completed", "pods": [], "completeness": {"complete": true},
            "job": {"namespace": "kube-system", "name": "a", "uid": "u", "created": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:01:00Z", "succeededPods": 1, "failedPods": 0}});
        let manifest = Manifest::parse("ci", text.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.job.namespace, "ci");
        assert_eq!(serde_json::to_value(&manifest).unwrap()["job"]["namespace"], "ci", "readers see it");
        assert!(Manifest::parse("ci", format!("{text} x").as_bytes()).is_err());
    }

    #[test]
    fn what_is_truncated_is_not_lost() {
        let counts = |text: serde_json::Value| {
            let read: Completeness = serde_json::from_value(text).unwrap();
            (read.lost.len(), read.truncated_count())
        };
        assert_eq!(counts(json!({"complete": true})), (0, 0));
        assert_eq!(counts(json!({"complete": false, "lost": ["a"], "truncated": ["b", "c"]})), (1, 2));
        // Of older sinks.
        assert_eq!(counts(json!({"complete": false})), (0, 1));
        assert_eq!(counts(json!({"complete": false, "lost": ["a", "b"]})), (2, 0));
    }

    trait Read<A> {
        fn no_other_way() {}
    }

    impl<T> Read<()> for T {}

    impl<T: serde::de::DeserializeOwned> Read<u8> for T {}

    /// If a manifest could be read in another way, two traits would match here, and this would not compile.
    #[test]
    fn nothing_but_parse_reads_a_manifest() {
        <Manifest as Read<_>>::no_other_way();
    }
}
