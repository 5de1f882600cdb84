//! Full logs in an object store, if the operator has configured one: a log that exceeds the budget of its result goes there
//! instead of being truncated, and the result has its URL.
//!
//! In: log pieces that no longer fit in memory ([`Overflow`]). Out: a gzipped file in the spool ([`Spool`]), then an object
//! ([`FullLogStore`]). Read [`full_log_store`] first.

mod circuit_breaker;
mod full_log_store;
mod log_key;
mod overflow;
mod spool;

pub use full_log_store::FullLogStore;
pub(crate) use full_log_store::FullLogStoreError;
pub(crate) use log_key::LogKey;
pub(crate) use overflow::Overflow;
pub(crate) use spool::FullLog;
pub(crate) use spool::Spool;
