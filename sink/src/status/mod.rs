//! The status of policies.
//!
//! In: policies, Jobs, results, webhook replicas and the state of the webhook entries. Out: the status subresource of
//! each policy and the gauges of the whole cluster. [`writer`] runs the loop; `policy_status`, `conditions`,
//! `limit_usage` and `summary` compute, without I/O.

pub(crate) mod conditions;
pub(crate) mod limit_usage;
pub(crate) mod policy_status;
pub(crate) mod summary;
pub(crate) mod writer;
