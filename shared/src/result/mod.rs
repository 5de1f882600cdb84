//! The format of a stored result: what the sink writes and what `kubectl job-results` reads.
//!
//! Start with [`manifest`], the machine-readable part, whose pods are in [`pods`] and whose causes are in [`failure`].
//! [`metadata`] has the labels and annotations of a result, [`sections`] the headings and keys of its logs,
//! [`digest`] its checksums, [`storage_kind`] the kind of its object, [`pending_events`] its undelivered CloudEvents.

pub mod digest;
pub mod failure;
pub mod manifest;
pub mod metadata;
pub mod pending_events;
pub mod pods;
pub mod sections;
pub mod storage_kind;
