//! Keeps webhook entries and ledgers in step with the policies; repairs Jobs the webhook missed.

pub mod ledger_gc;
pub mod match_conditions;
pub mod repair;
pub mod webhook_entries;
