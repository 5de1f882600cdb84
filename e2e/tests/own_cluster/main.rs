//! Tests that have a cluster each and wait for it most of the time, so that they run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod base_install;
mod demo;
mod harvest_crash;
mod harvest_kill;
mod leader_election;
mod monitoring;
