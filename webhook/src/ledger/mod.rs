//! The ledger's protocol: a limit holds whatever the burst, however many replicas decide, whoever crashes.
//!
//! A round reads the ledger, then looks at the Jobs, decides, writes the ledger by resourceVersion, and only then
//! answers. Why that is exact: whatever is active got there by an attempt that was written first. When a decision is
//! made, that attempt is either in the ledger that was read, and counts, or somebody took it out before after having
//! seen its outcome; the view shows everything up to that outcome ([`resolve::Sight::suffices`]), so the Job counts
//! unless it is truly no longer active. A view that is older than it says can only make Jobs count that are gone.
//!
//! | module | holds |
//! | --- | --- |
//! | [`resolve`] | when an attempt may be taken out (pure) |
//! | [`decide`] | a round: ledger, view and requests -> answers and the next ledger (pure) |
//! | [`clocks`], [`memory`] | since when this process has known each attempt, and which ledgers were there |
//! | [`counting`], [`round`] | the same in a Job's terms: policies, Jobs and attempts -> verdicts (pure) |
//! | [`store`], [`actor`], [`limiter`] | the objects; one task per ledger; the limiter over them |
//!
//! `tests/model.rs` runs these functions in every order of events, within bounds.

pub mod actor;
pub mod clocks;
pub mod counting;
pub mod decide;
pub mod limiter;
pub mod memory;
pub mod resolve;
pub mod round;
pub mod store;
