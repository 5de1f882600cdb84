//! What every process of ours has: admin endpoint, logs, metrics.

pub mod admin;
pub mod telemetry;
