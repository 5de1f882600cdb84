//! Small conversions for texts and times.

use jiff::Timestamp;

/// Drops the fraction: Kubernetes' times have none, and a time must equal itself after it is stored.
pub(crate) fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
