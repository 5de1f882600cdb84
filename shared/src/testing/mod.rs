//! What the tests of several crates need (feature `testing`), and this crate's own tests.
//!
//! [`policies`] and [`refusals`] build objects. [`apiserver`] is the in-memory apiserver: read `apiserver/mod.rs`
//! first, then `storage.rs` for what it stores and `faults.rs` for what it can do wrong.

#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

pub mod apiserver;
pub mod policies;
pub mod refusals;
