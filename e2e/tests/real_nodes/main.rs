//! Jobs in real containers, on a real node, with the pair in pods and `manifests/base` as it is. Needs root and the
//! programs of `requirements.rs`; elsewhere each scenario says that it is skipped, and why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod base_install;
mod ends;
mod fixture;
mod leftovers;
mod rotation;
