//! Calls to the apiserver.

pub mod client;
pub mod error;
#[cfg(feature = "server")]
pub mod watch;
