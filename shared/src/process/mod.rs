//! What every process of ours has: admin endpoint, logs, metrics.

pub mod admin;
pub mod error_chain;
pub mod jitter;
pub mod telemetry;
