//! Calls to the apiserver.

pub mod client;
pub mod error;
pub mod watch;
