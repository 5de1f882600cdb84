//! What every process of ours has: admin endpoint, logs, metrics.

pub mod admin;
pub mod error_chain;
pub mod failure_log;
pub mod jitter;
pub mod supervisor;
pub mod telemetry;
