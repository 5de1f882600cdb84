//! Calls to the apiserver: [`client`] builds clients, [`error`] classifies failures, `watch` runs watches, `metrics_auth`
//! asks who may read metrics.

pub mod client;
pub mod error;
#[cfg(feature = "server")]
pub mod metrics_auth;
#[cfg(feature = "server")]
pub mod watch;
