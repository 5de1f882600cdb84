//! Labels and annotations of a result.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{names, result::pending_events::PendingEvents};

/// Label on a result while announcements of it are pending, so that they are found without reading every result.
pub const PENDING: &str = "job-handler/announce";

/// Label on shards: the uid of the Job, as on the manifest, but never [`job_handler_shared::keys::CREATED`].
pub const SHARD: &str = "job-handler/shard";

/// Annotation on a result: bytes of all that is stored of it, shards included.
pub const SIZE: &str = "job-handler/size";

/// Annotation on a result: how many parts of it could not be had.
pub const LOST: &str = "job-handler/lost";

/// Annotation on a result: uids of the policies that asked for it, comma between them.
pub const POLICIES: &str = "job-handler/policies";

/// Annotation on a result: the receivers that are still to be told of it, comma between them.
pub const OUTBOX: &str = "job-handler/cloudevents";

/// What a result's annotation says.
pub fn parse_outbox(annotations: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let text = annotations.and_then(|all| all.get(OUTBOX));
    text.map_or_else(Vec::new, |text| text.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

/// What a result's annotation is to say; none where nothing is pending.
pub fn format_outbox(pending: &PendingEvents) -> Option<String> {
    let names: Vec<&str> = pending.keys().map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(","))
}

/// Annotation on results: what retention has to know, so that it need not read every result.
pub const RETENTION: &str = "job-handler/retention";

/// The content of [`RETENTION`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetentionFacts {
    /// When the Job was created: results of a group are in the order of their Jobs.
    pub created: Timestamp,
    /// When the Job finished: a result's age counts from there.
    pub finished: Timestamp,
    /// Bytes in the cluster's store, shards included.
    pub bytes: u64,
    /// How many shards there are.
    #[serde(default)]
    pub shards: usize,
    /// How many objects there are in the object store; nothing = that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<usize>,
    /// The policies that asked for it, as [`requesting_policy`] writes them: what they say *now* is what counts.
    pub policies: Vec<String>,
}

/// How a policy is named in [`RetentionFacts`]: its namespace is the result's.
pub fn requesting_policy(kind: impl fmt::Display, name: &str) -> String {
    format!("{kind}/{name}")
}

/// Whether a result of the Job with this uid can have this name, whatever the Job is called; where the Job is known,
/// [`Store::places`] compares the whole name.
pub fn may_be_result(name: &str, uid: &str) -> bool {
    name.ends_with(&names::result_name("")) || name.ends_with(&names::result_name_with_uid("", uid))
}
