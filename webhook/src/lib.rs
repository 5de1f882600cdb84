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

pub use job_handler_shared::{bounds, explain};

pub mod answer;
pub mod backoff;
pub mod containers;
pub mod decide;
pub mod expiry;
pub mod job;
pub mod lease;
pub mod ledger;
pub mod limit;
pub mod list;
pub mod metrics;
pub mod mirror;
pub mod mutate;
pub mod patch;
pub mod peers;
pub mod policies;
pub mod recent;
pub mod refusals;
pub mod review;
pub mod run;
pub mod select;
pub mod server;
pub mod slots;
pub mod state;
pub mod validate;
pub mod warn;
pub mod wording;
