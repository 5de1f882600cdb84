//! Collects pod states and logs and packs them into a result.

pub mod at_risk;
pub mod captured;
pub mod collector;
pub mod failure;
pub mod follower;
pub mod log_buffer;
pub mod log_sections;
pub mod node_limits;
pub mod pack;
pub mod pod_status;
pub mod pod_tracker;
pub mod redact;
