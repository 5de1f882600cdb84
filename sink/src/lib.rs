//! Event sink: harvests finished Jobs, tells of them and prunes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`watch`], [`store`] | Jobs, policies, namespaces, results and replicas as the cluster tells them |
//! | [`lease`] | who leads |
//! | [`queue`] | what is to be looked at |
//! | [`plan`], [`prune`] | what is to be done: pure |
//! | [`act`] | does it |
//! | [`slots`], [`turns`] | how much at a time, and whose turn it is |
//! | [`capture`], [`facts`], [`logs`], [`sections`] | what pods tell |
//! | [`classify`] | what a failure was, level by level |
//! | [`follow`], [`risk`], [`pods`] | pods that may be gone before their Job has finished |
//! | [`result`], [`manifest`], [`commit`] | the stored result |
//! | [`held`], [`secrets`], [`conceal`] | results in Secrets: the calls, the right to, what is told of them |
//! | [`retention`], [`inventory`] | which results go: pure; and all that there are |
//! | [`sweep`] | removes them, and shards that no result names |
//! | [`objects`] | whole logs in an object store |
//! | [`mark`] | conditional writes to Jobs |
//! | [`announce`], [`events`] | Events about results |
//! | [`buried`] | finished Jobs that are gone before their result was stored |
//! | [`refusals`], [`series`] | Events about refusals, from the webhook's socket |
//! | [`entries`], [`conditions`] | the webhook entries of enforced limits |
//! | [`ledgers`], [`absorb`] | the ledgers: what is pending, and how groups have fared |
//! | [`release`], [`line`] | starts queued Jobs; tells them what they wait for |
//! | [`heal`] | Jobs that were created while the webhook was away |
//! | [`unqueued`] | Jobs that people took out of the queue |
//! | [`census`] | how things stand over all |
//! | [`status`], [`statuses`] | what policies' statuses tell; writes them |
//! | [`config`] | the configuration file |
//! | [`cloudevent`], [`outbox`], [`spool`], [`receiver`] | CloudEvents |
//! | [`cleaner`] | the one-shot `prune` |
//! | [`reader`] | `kubectl job-results` |
//! | [`run`], [`metrics`], [`api`] | the process |
//!
//! What the sink may be trusted with, stopped at any point: every write is a create under a derived name, or holds only
//! for the version that was looked at; every sequence can be run again from its start.

pub mod cloudevents;
pub mod config;
pub mod enforce;
pub mod harvest;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod object_store;
pub mod observe;
pub mod prune;
pub mod queueing;
pub mod reconcile;
pub mod result;
pub mod retention;
pub mod run;
pub mod runtime;
pub mod status;

pub use job_handler_shared::kube::error;

/// User agent's program name.
pub const PROGRAM: &str = "job-handler-sink";
/// User agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
