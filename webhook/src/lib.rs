//! Admission webhook: stamps new Jobs and enforces limits. `README.md` explains what it promises and how.
//!
//! ```text
//! /mutate    review -> policies (in memory) -> stamp decision (pure) -> JSON Patch -> response
//! /validate  review -> attempt -> limiter: one round per ledger -> decision (pure) -> ledger write (CAS) -> response
//!                                                        refusals -> unix socket -> sink
//! /warn      review -> estimate of active Jobs -> warning
//! ```
//!
//! The rooms, from the top down; `tests/layers.rs` holds them to this order:
//!
//! | room | holds |
//! | --- | --- |
//! | `run`, `args` | the process and its command line |
//! | `admission` | the endpoints |
//! | `ledger` | the limiter: exact limits with several replicas, by a shared ledger |
//! | `presence_lease` | the Lease that says which policies this replica enforces |
//! | `refusal_sender` | sends refusals to the sink |
//! | `metrics` | the webhook's metrics |
//! | `limit` | what a limit counts, and the message of a refusal (pure) |
//! | `stamp` | what `/mutate` changes in a Job (pure) |
//! | `cache` | policies, namespaces and Jobs in memory, kept up to date by watches |
//! | `job_view` | reads the needed parts of a Job |

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
