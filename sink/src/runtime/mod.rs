//! Machinery of the control loops that knows nothing of Jobs.
//!
//! | file | holds |
//! | --- | --- |
//! | [`work_queue`], `queue_state` | the work queue of keys, in lanes |
//! | [`concurrency`], [`lanes`] | limits concurrent reconciles; permits for fast and slow work |
//! | [`leader_election`] | the Lease that only the leader holds |
//! | [`resync`] | the interval of full reconciles |

pub(crate) mod concurrency;
pub(crate) mod lanes;
pub(crate) mod leader_election;
mod queue_state;
pub(crate) mod resync;
pub(crate) mod work_queue;
