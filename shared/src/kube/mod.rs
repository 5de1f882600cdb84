//! Calls to the apiserver: [`client`] builds clients, [`error`] classifies failures, `watch` runs watches, `metrics_auth`
//! asks who may read metrics.
//!
//! Lists and watches are read object by object, in bounded memory: `raw_reads` as JSON, `object_stream` as the events of a
//! kind; `list_splitter` cuts a list into its items.

pub mod client;
pub mod error;
#[cfg(feature = "server")]
mod list_splitter;
#[cfg(feature = "server")]
pub mod metrics_auth;
#[cfg(feature = "server")]
pub mod object_stream;
#[cfg(feature = "server")]
pub mod raw_reads;
#[cfg(feature = "server")]
pub mod watch;
