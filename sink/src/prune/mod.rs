//! Prune: which Jobs of a group are deleted, and the one-shot command that deletes them.
//!
//! In: the Jobs of a group and how many of the newest to keep. Out: the Jobs to delete, newest ones never among them.
//! Start with [`keep`], which is pure and which the running sink and the command share. [`command`] is
//! `job-handler-sink prune`.

pub mod command;
pub(crate) mod keep;
