//! Enforces limits where admission alone cannot.
//!
//! In: policies, Jobs and the webhook configurations. Out: the webhook entries of every policy with a limit
//! (`webhook_entries` computes them, [`entry_writer`] writes and restores them), repairs of Jobs that the webhook missed
//! (`repair_patch` and `excess` decide, [`repair`] writes), and deletions of ledgers without a namespace.

mod configuration_watch;
pub(crate) mod entry_writer;
mod excess;
pub(crate) mod ledger_gc;
mod match_conditions;
pub(crate) mod repair;
mod repair_patch;
mod restored_entries;
pub(crate) mod webhook_entries;
