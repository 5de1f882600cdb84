//! Benchmarks: the cost of stamping, limits, harvests and prunes, compared with simpler and with usual implementations.
//!
//! Absolute figures depend on the machine and its load; the ratios are what to read. Each round measures all compared
//! implementations one after the other, and ratios are calculated within each round.
//!
//! [`run`](mod@run) (`run.rs`, read it first) measures the chosen [`BenchPart`]s and returns a [`BenchReport`] of
//! [`table::Table`]s:
//! - `webhook_only`, `handler_calls`: the webhook without an apiserver, and its handler without a server;
//! - `creates`: Job creates through the apiserver, by `variants` of stamping;
//! - `limits`, `harvest`, `prune`: one folder or file each.
//!
//! Shared: `seed` (Jobs by the thousand), `load` (latencies), `samples` (figures per round), `machine` (figures from
//! `/proc`), `server` and `handlers` (the handlers to compare with). Nothing outside of this folder imports it, except
//! the program `bench-all` and tests.

pub mod cleanup_latency;
pub mod creates;
mod environment;
pub mod handler_calls;
mod handlers;
pub mod harvest;
pub mod limits;
mod load;
pub mod machine;
mod markdown;
mod native_policy;
pub mod prune;
pub mod reviews;
mod run;
mod samples;
mod seed;
pub mod server;
pub mod table;
pub mod variants;
mod watch;
pub mod webhook_only;

pub use run::{BenchPart, BenchReport, run};
