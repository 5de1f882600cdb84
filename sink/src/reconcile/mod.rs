//! Reconciles finished Jobs and groups.
//!
//! In: keys from the work queue. Out: stored results, marks on Jobs, Events, and deletions of Jobs. [`workers`] runs the
//! loop, [`job`] brings one Job to the end of its sequence, `store_result` is the step that captures and stores, and
//! `group` deletes the older runs of a group. [`resync`] enqueues what is not done; [`stale_jobs`] finds Jobs whose end
//! the watch missed.

mod error;
mod group;
pub mod job;
pub mod resync;
pub(crate) mod stale_jobs;
mod store_result;
pub(crate) mod workers;
