//! Small conversions for texts and times.

use jiff::Timestamp;

/// Kubernetes' times have no fractions: what is read back must compare equal.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
