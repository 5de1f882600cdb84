//! The format of a stored result: what the sink writes and what `kubectl job-results` reads.
//!
//! Begin with [`manifest`], the machine-readable part; [`metadata`] has every label and annotation of a result.

pub mod failure;
pub mod manifest;
pub mod metadata;
pub mod pending_events;
pub mod pods;
pub mod sections;
pub mod storage_kind;
