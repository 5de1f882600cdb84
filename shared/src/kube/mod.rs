//! Calls to the apiserver: [`client`] builds clients, [`error`] classifies failures, `watch` runs watches.

pub mod client;
pub mod error;
#[cfg(feature = "server")]
pub mod watch;
