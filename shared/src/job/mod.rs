//! A Job cut down to what both programs need.
//!
//! In: a Job as the apiserver returns it. Out: its state ([`snapshot`], start reading there), its group ([`group`]), the
//! scopes in which it takes a slot ([`scope`]), and the content of its annotation `job-handler/stamped`
//! ([`stamped_annotation`], [`queued_entry`]). `json` reads a Job without its template, `trim` bounds what memory keeps of
//! it, and `watch` lists and watches them.

pub mod group;
mod json;
pub mod queued_entry;
pub mod scope;
pub mod snapshot;
pub mod stamped_annotation;
pub mod trim;
#[cfg(feature = "server")]
pub mod watch;
