//! The interval of full reconciles.

use std::time::Duration;

/// Everything is reconciled at this interval: a missed event delays a reconcile by no more.
pub(crate) const RESYNC: Duration = Duration::from_secs(30);
