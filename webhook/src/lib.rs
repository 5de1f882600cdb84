//! Admission webhook: stamps new Jobs and holds limits.
//!
//! ```text
//! /mutate    bytes -> review -> policies (in memory) -> decide (pure) -> patch -> answer
//! /warn      bytes -> review -> about how many are active -> a warning, never more
//! /validate  bytes -> review -> limit: one round per ledger, LIST -> decide (pure) -> ledger CAS -> answer
//!                                            refusals -> unix socket -> sink
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`review`], [`job`], [`answer`] | what comes in, read in one pass; what goes out |
//! | [`select`], [`bounds`], [`containers`], [`explain`], [`decide`], [`patch`] | what becomes of a Job, and as which operations |
//! | [`mirror`], [`policies`] | policies and namespaces in memory |
//! | [`limit`], [`slots`], [`backoff`], [`wording`] | may it take a slot (pure), and what its author reads if not |
//! | [`warn`] | what policies in mode Warn would do |
//! | [`list`] | consistent LISTs of Jobs |
//! | [`ledger`] | the limiter: exact with several replicas, by a ledger that they share |
//! | [`lease`] | this replica lives, and enforces these revisions |
//! | [`refusals`] | the way to the sink |
//! | [`mutate`], [`validate`], [`state`], [`server`], [`metrics`], [`run`] | endpoints and process |

pub mod admission;
pub mod args;
pub mod cache;
pub mod job_view;
pub mod ledger;
pub mod limit;
pub mod metrics;
pub mod presence_lease;
pub mod refusal_sender;
pub mod run;
pub mod stamp;

pub use job_handler_shared::{job::stamped_annotation, policy::range};
