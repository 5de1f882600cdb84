//! Benchmarks: what stamping, limits, harvests and prunes cost, compared with something that does less and something that
//! does more.
//!
//! Absolute figures depend on the machine and the hour; the ratios are what to read. Whatever is compared is measured in
//! turns, within the same minutes, and each round's ratio is taken within that round.
//!
//! [`run`](mod@run) (`run.rs`, read it first) measures the chosen [`BenchPart`]s and returns a [`BenchReport`] of [`table::Table`]s:
//! - `webhook_only`, `handler_calls`: the webhook without an apiserver, and its handler without a server;
//! - `creates`: Job creates through the apiserver, by `variants` of stamping;
//! - `limits`, `harvest`, `prune`: one folder or file each.
//!
//! Shared: `seed` (Jobs by the thousand), `load` (latencies), `samples` (figures per round), `machine` (what the kernel
//! counts), `server` and `handlers` (what the webhook is compared with). Nothing outside of this folder imports it, except
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
