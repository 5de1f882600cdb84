//! Fuzz targets: bytes from strangers, tenants and damaged objects, and what must hold for each of them.
//!
//! | target | bytes | what must hold |
//! | --- | --- | --- |
//! | [`review`] | an AdmissionReview | each endpoint answers it; the patch applies, changes only our fields, and is empty on its own output |
//! | [`policy`] | policies | the webhook entries of valid policies pass the apiserver's validation |
//! | [`logs`] | logs of containers | the sink stores and the plugin prints them unchanged |
//! | [`ledger`] | a JobLedger | it is rejected, or understood, written back unchanged, and no limit is exceeded |
//! | [`refusal`] | lines on the refusal socket | valid lines arrive, whatever is around them; only Events are written |
//! | [`result`] | objects of a stored result | the plugin prints nothing that a terminal interprets |
//!
//! A target is a function `check` that panics if something does not hold. `fuzz_targets/` hands it to libFuzzer, and
//! `tests/corpus.rs` replays the corpora on any compiler. `entry_rules` holds the rules of webhook entries, `plugin` runs
//! the kubectl plugin, `harness` holds what several targets need.

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a fuzz target reports what it finds by panicking"
)]

pub mod entry_rules;
mod harness;
pub mod ledger;
pub mod logs;
mod plugin;
pub mod policy;
pub mod refusal;
pub mod result;
pub mod review;

pub use harness::{corpus, documents};

/// A target, called with the bytes of one input.
pub type TargetFunction = fn(&[u8]);

/// Each target by its name, which is also the name of its corpus and of its program.
pub const TARGETS: [(&str, TargetFunction); 6] = [
    ("review", review::check),
    ("policy", policy::check),
    ("logs", logs::check),
    ("ledger", ledger::check),
    ("refusal", refusal::check),
    ("result", result::check),
];
