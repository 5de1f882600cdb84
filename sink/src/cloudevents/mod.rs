//! CloudEvents about Jobs.
//!
//! In: manifests with pending events, running Jobs, and refusals. Out: HTTP posts to the configured receivers. [`event`]
//! builds events, [`client`] posts them; [`outbox`] delivers those about Jobs, [`refusal_spool`] those about refusals.

pub mod client;
pub(crate) mod event;
pub mod outbox;
pub mod refusal_spool;
