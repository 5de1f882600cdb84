//! What decides whether a Job may become active: the question that `/validate` asks, its answers, and their rules.
//!
//! In: an `Attempt`. Out: a `Verdict` of a `Limiter`. Read `attempt` first.
//!
//! | module | holds |
//! | --- | --- |
//! | `attempt` | attempts, verdicts and the interface of a limiter |
//! | `scopes` | which limits apply to a Job |
//! | `failure_backoff` | how long a group waits after failures |
//! | `message` | what the author of a refused Job reads |

mod attempt;
pub mod failure_backoff;
pub(crate) mod message;
pub mod scopes;

pub(crate) use attempt::FAILURE_BACKOFF;
pub use attempt::{Attempt, EarlierSlots, Limiter, Refused, Verdict};
