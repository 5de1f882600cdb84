//! Reconciles Jobs and groups.

pub mod group;
pub mod job;
pub mod stale_jobs;
