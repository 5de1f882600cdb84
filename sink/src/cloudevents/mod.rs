//! CloudEvents: build, queue, deliver.

pub mod client;
pub mod event;
pub mod outbox;
pub mod refusal_spool;
