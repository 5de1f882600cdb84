//! What all programs share. Read [`error_chain`] and [`jitter`] for the parts that every program has; the feature
//! `server` adds what long-running programs need, and the kubectl plugin does not.
//!
//! | file | holds |
//! | --- | --- |
//! | [`error_chain`], [`jitter`] | an error with its causes in one line; random pauses between retries |
//! | `supervisor` | runs the tasks of a program and ends them at a signal |
//! | `admin` | the admin endpoint: liveness, readiness, metrics |
//! | `connections`, `bounded_service` | how many connections a server has, in all and per address |
//! | `telemetry`, `failure_log` | logs and metrics; when a repeated failure is logged again |

#[cfg(feature = "server")]
pub mod admin;
#[cfg(feature = "server")]
pub mod bounded_service;
#[cfg(feature = "server")]
pub mod connections;
pub mod error_chain;
#[cfg(feature = "server")]
pub mod failure_log;
pub mod jitter;
#[cfg(feature = "server")]
pub mod supervisor;
#[cfg(feature = "server")]
pub mod telemetry;
