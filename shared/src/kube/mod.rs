//! Calls to the apiserver: [`client`] builds clients, [`error`] classifies failures, `watch` runs watches, and `raw_reads`
//! lists and watches object by object, in bounded memory (`list_splitter` cuts a list into its items).

pub mod client;
pub mod error;
#[cfg(feature = "server")]
mod list_splitter;
#[cfg(feature = "server")]
pub mod raw_reads;
#[cfg(feature = "server")]
pub mod watch;
