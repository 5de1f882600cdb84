//! The demo: shows what job-handler does, through the real `kubectl`, on realistic Jobs.
//!
//! [`run`] (`setup.rs`) boots a cluster, installs the pair and runs every [`DemoStep`] in order (`script.rs`). Each
//! step (`steps/`) runs commands through the [`DemoRunner`] (`runner.rs`), which prints them, and fails if the output
//! differs from the expectation. The outcome is a [`DemoReport`]. Read `script.rs` first. `tests/own_cluster/demo.rs` breaks each
//! step once.

mod report;
mod runner;
mod script;
mod setup;
mod steps;

pub use report::DemoReport;
pub use runner::{DemoOptions, DemoRunner};
pub use script::{DemoStep, STEPS};
pub use setup::{prepare, run};
