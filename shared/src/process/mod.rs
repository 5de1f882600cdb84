//! What every process of ours has: admin endpoint, logs, metrics, supervised tasks.
//!
//! Behind the feature `server` is what only long-running processes need; the kubectl plugin does without.

#[cfg(feature = "server")]
pub mod admin;
pub mod error_chain;
#[cfg(feature = "server")]
pub mod failure_log;
pub mod jitter;
#[cfg(feature = "server")]
pub mod supervisor;
#[cfg(feature = "server")]
pub mod telemetry;
