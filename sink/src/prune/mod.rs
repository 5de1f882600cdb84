//! Which Jobs of a group are deleted; the `prune` command.

pub mod command;
pub mod keep;
