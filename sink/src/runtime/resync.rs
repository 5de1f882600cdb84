//! The interval of full reconciles.

use std::time::Duration;

/// Everything is reconciled this often, so that a missed event delays a reconcile by no more.
pub(crate) const RESYNC: Duration = Duration::from_secs(30);
