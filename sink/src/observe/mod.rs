//! The watches and the in-memory store they fill.

pub mod context;
pub mod key;
pub mod ledger_index;
pub mod reflectors;
pub mod result_inventory;
pub mod secret_access;
pub mod secret_watch;
pub mod store;
pub mod tombstones;
