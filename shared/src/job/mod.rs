//! A Job cut down to what both programs need: its state, group, scopes and stamps.

pub mod group;
pub mod queued_entry;
pub mod scope;
pub mod snapshot;
pub mod stamped_annotation;
