//! CloudEvents about Jobs.
//!
//! In: manifests with pending events, running Jobs, and refusals. Out: HTTP posts to the configured receivers. [`event`]
//! builds events, [`client`] posts them; [`outbox`] delivers those about Jobs, [`refusal_spool`] those about refusals.

pub mod client;
pub(crate) mod event;
#[cfg(test)]
mod flaky_receiver;
pub mod outbox;
pub(crate) mod refusal_spool;
