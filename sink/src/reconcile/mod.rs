//! Reconciles Jobs and groups.

pub mod group;
pub mod job;
pub mod resync;
pub mod stale_jobs;
