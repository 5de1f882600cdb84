//! How often everything is reconciled again.

use std::time::Duration;

/// How often everything is looked at again: a missed event costs at most this much.
pub const RESYNC: Duration = Duration::from_secs(30);
