//! Enforces limits where admission alone cannot.
//!
//! In: policies, Jobs and the webhook configurations. Out: the webhook entries of every policy with a limit, repairs of
//! Jobs that the webhook missed (`repair_patch` and `excess` decide, [`repair`] writes), deletions of ledgers without a
//! namespace, and the end of slots that are held for pods ([`held_slots`]).
//!
//! The entries, in the order of their way: `webhook_entries` computes those of one policy (with
//! `webhook_client`), `entry_checks` tries them alone
//! (in the order of `check_queue`), `placement` says in which configuration they are, `wanted_entries` compares, `configurations` reads and writes,
//! `write_pace` says how often, and [`entry_writer`] runs it all.

mod check_queue;
mod configurations;
mod entry_checks;
pub(crate) mod entry_writer;
mod excess;
pub(crate) mod held_slots;
pub(crate) mod ledger_gc;
mod match_conditions;
mod placement;
pub(crate) mod repair;
mod repair_patch;
mod restored_entries;
mod wanted_entries;
mod webhook_client;
pub(crate) mod webhook_entries;
mod write_pace;
