//! The cost of limits: creates, refusals, the draining of a queue, memory. Creates and refusals are compared with a
//! `ResourceQuota` behind webhooks that do nothing.
//!
//! [`measure`](mod@measure) (`measure.rs`) boots a cluster, sets it up (`limits_cluster.rs`) and reports one table per
//! file: `creates` (with `time_breakdown`), `overlap`, `refusals`, `queue_drain`, `memory`.

mod create_jobs;
mod creates;
mod limits_cluster;
mod measure;
mod memory;
mod overlap;
mod queue_drain;
mod refusals;
mod time_breakdown;

pub use creates::LimitMethod;
pub use measure::{LimitsEffort, measure};
