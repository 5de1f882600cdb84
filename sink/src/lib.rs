//! Event sink: harvests finished Jobs, reports them and prunes.
//!
//! Each room imports only rooms below it (`tests/layers.rs`). From the top:
//!
//! | room | does |
//! | --- | --- |
//! | [`args`], [`run`] | command line; tasks and leadership |
//! | [`reconcile`] | harvests, marks, announces and deletes one Job; prunes a group |
//! | [`status`] | writes policy conditions and status |
//! | [`enforce`] | webhook entries of enforced limits, Jobs that the webhook missed, ledger garbage collection |
//! | [`queueing`] | releases queued Jobs and publishes their positions |
//! | [`notify`] | Events about results and refusals |
//! | [`cloudevents`] | CloudEvents |
//! | [`harvest`] | pods and logs of a Job |
//! | [`retention`] | deletes stored results |
//! | [`prune`] | which Jobs of a group are deleted; the `prune` command |
//! | [`observe`] | watches and the store that they fill |
//! | [`object_store`], [`result`] | full logs in an object store; results in ConfigMaps and Secrets |
//! | [`jobs`] | next step for a Job, conditional writes to it |
//! | [`runtime`] | work queue, concurrency, leader election |
//! | [`config`], [`metrics`], [`model`] | configuration file; metrics; shared types |
//!
//! The sink can stop at any point: each write creates an object with a derived name, or holds only for the version that it
//! was decided on, and each sequence of writes can be run again from its start.

pub mod args;
pub(crate) mod cloudevents;
pub mod config;
pub(crate) mod enforce;
pub mod harvest;
pub(crate) mod jobs;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod object_store;
pub mod observe;
pub mod prune;
pub(crate) mod queueing;
pub mod reconcile;
pub(crate) mod result;
pub mod retention;
pub(crate) mod run;
pub(crate) mod runtime;
pub(crate) mod status;

// The builder of tests in `tests/` serves the unit tests too; it names this crate as those tests do.
#[cfg(test)]
extern crate self as job_handler_sink;
#[cfg(test)]
#[path = "../tests/common/build.rs"]
#[allow(dead_code, reason = "the tests in `tests/` use the rest")]
mod test_support;

pub use enforce::webhook_entries::all_entries as build_webhook_entries;

/// The program's name in the user agent.
pub(crate) const PROGRAM: &str = "job-handler-sink";
/// The program's version in the user agent.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
