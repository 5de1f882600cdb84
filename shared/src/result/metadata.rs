//! Labels and annotations of a result.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{keys, names, result::pending_events::PendingEvents};

/// Label on a result with pending announcements, so that a list finds it without reading every result.
pub const PENDING: &str = "job-handler/announce";

/// Label on shards: the number of the shard. A shard has no label [`crate::keys::CREATED`], so that no list takes it for
/// a result.
pub const SHARD: &str = "job-handler/shard";

/// Annotation on a result: its size in bytes, including shards.
pub const SIZE: &str = "job-handler/size";

/// Annotation on a result: the number of losses.
pub const LOST: &str = "job-handler/lost";

/// Annotation on a result: uids of the policies that requested it, separated by commas.
pub const POLICIES: &str = "job-handler/policies";

/// Annotation on a result: receivers with undelivered CloudEvents, separated by commas.
pub const OUTBOX: &str = "job-handler/cloudevents";

/// Annotation on a result: HMAC-SHA-256 (hex) by which the sink recognises what it wrote, under a key that only the sink can
/// read.
pub const SEAL: &str = "job-handler/seal";

/// What [`SEAL`] covers besides the Job: the annotations that never change once the result is written.
pub const SEALED_ANNOTATIONS: [&str; 4] = [SIZE, LOST, POLICIES, RETENTION];

/// Labels that only the sink sets on ConfigMaps and Secrets; the ValidatingAdmissionPolicy of the base install names them.
pub const RESERVED_LABELS: [&str; 6] =
    [keys::CREATED, keys::JOB_UID, SHARD, keys::STATUS, keys::GROUP, PENDING];

/// Annotations that only the sink sets on ConfigMaps and Secrets.
pub const RESERVED_ANNOTATIONS: [&str; 6] = [SIZE, LOST, POLICIES, OUTBOX, RETENTION, SEAL];

/// Parses [`OUTBOX`].
pub fn parse_outbox(annotations: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let text = annotations.and_then(|all| all.get(OUTBOX));
    text.map_or_else(Vec::new, |text| text.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

/// Formats [`OUTBOX`]; none if nothing is pending.
pub fn format_outbox(pending: &PendingEvents) -> Option<String> {
    let names: Vec<&str> = pending.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Annotation on results: what retention needs, so that it does not read every result.
pub const RETENTION: &str = "job-handler/retention";

/// The content of [`RETENTION`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionFacts {
    /// Creation of the Job, which orders the results of a group.
    pub created: Timestamp,
    /// When the Job finished; a result's age counts from then.
    pub finished: Timestamp,
    /// Bytes in etcd, including shards.
    pub bytes: u64,
    /// The number of shards.
    #[serde(default)]
    pub shards: usize,
    /// The number of objects in the object store; none if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<usize>,
    /// The policies that requested it, as [`requesting_policy`] formats them. Their current spec counts.
    pub policies: Vec<String>,
}

/// Formats a policy for [`RetentionFacts`]; its namespace is the result's.
pub fn requesting_policy(kind: impl fmt::Display, name: &str) -> String {
    format!("{kind}/{name}")
}

/// Whether a result of the Job with this uid can have this name, for a Job of any name.
pub fn may_be_result(name: &str, uid: &str) -> bool {
    name.ends_with(&names::result_name("")) || name.ends_with(&names::result_name_with_uid("", uid))
}
