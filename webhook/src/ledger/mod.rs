//! The ledger's protocol: a limit holds under any burst, with any number of replicas, and across crashes.
//!
//! A round takes the newest known ledger, reads the Jobs, decides, writes the ledger by resourceVersion, and only then
//! answers. Why this is exact: every active Job stems from an attempt that was written before. When a decision is made,
//! that attempt is either in the ledger and counts, or another replica removed it after it had observed the outcome. The
//! view covers that outcome (`resolve::ViewSource::covers`), so the Job counts unless it is no longer active. A view
//! that is older than the ledger requires is not used; one that is merely old can only count Jobs that are gone.
//!
//! In: attempts (`limit::Attempt`). Out: verdicts. Read `decide` first, then `round_attempt` and `actor`.
//!
//! | pure | holds |
//! | --- | --- |
//! | `resolve` | when an attempt may be removed |
//! | `decide`, `usage` | a round in the ledger's terms; who holds which slots |
//! | `count`, `round` | the same in terms of Jobs and policies |
//! | `freshness`, `batching`, `write_order` | which version to trust, how long to gather, which replica writes next |
//!
//! | with effects | holds |
//! | --- | --- |
//! | `limiter`, `actor`, `messages` | the limiter, and one actor per ledger |
//! | `round_attempt`, `fresh_read` | one attempt at a round; the reads before a refusal |
//! | `known_ledgers`, `scope_cache` | cached ledgers, cached scopes of Jobs |
//! | `attempt_age`, `expiry`, `other_webhooks` | ages of attempts, and when they can no longer store a Job |
//! | `client`, `provision`, `shared` | ledger objects, their creation, and what the actors share |
//!
//! `tests/model` runs the pure part in every order of events, within bounds.

pub mod actor;
pub mod attempt_age;
pub(crate) mod batching;
pub mod client;
pub(crate) mod count;
pub mod decide;
pub mod expiry;
pub(crate) mod fresh_read;
pub(crate) mod freshness;
pub mod known_ledgers;
pub mod ledger_id;
pub mod limiter;
pub mod messages;
pub mod other_webhooks;
pub(crate) mod provision;
pub mod resolve;
pub mod round;
pub(crate) mod round_attempt;
pub mod scope_cache;
pub mod shared;
#[cfg(test)]
mod test_support;
pub(crate) mod usage;
pub(crate) mod write_order;
