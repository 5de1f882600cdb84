//! The ledger's protocol: a limit holds whatever the burst, however many replicas decide, whoever crashes.
//!
//! A round takes the ledger as it was read or watched last, looks at the Jobs, decides, writes the ledger by
//! resourceVersion, and only then answers. Why that is exact: whatever is active got there by an attempt that was written first. When a decision is
//! made, that attempt is either in the ledger that was read, and counts, or somebody took it out before after having
//! seen its outcome; the view shows everything up to that outcome ([`resolve::ViewSource::suffices`]), so the Job counts
//! unless it is truly no longer active. A view that is older than it says can only make Jobs count that are gone.
//!
//! | module | holds |
//! | --- | --- |
//! | [`resolve`] | when an attempt may be taken out (pure) |
//! | [`decide`] | a round: ledger, view and requests -> answers and the next ledger (pure) |
//! | [`clocks`], [`memory`] | the newest ledgers, and since when this process has known each attempt |
//! | [`cache`], [`feed`], [`tombstones`] | the Jobs that were watched, how far that is, and which are gone |
//! | [`look`] | ledger and Jobs as they are now, for whoever would be refused otherwise |
//! | [`counting`], [`round`] | the same in a Job's terms: policies, Jobs and attempts -> verdicts (pure) |
//! | [`found`] | what was found out about each Job, as long as it is so |
//! | [`ahead`] | ledgers are made before they are asked for |
//! | [`store`], [`actor`], [`pace`], [`limiter`] | the objects; one task per ledger, and its pace; the limiter over them |
//! | [`turns`] | who had better write where several replicas want to |
//!
//! `tests/model.rs` runs these functions in every order of events, within bounds.

pub mod actor;
pub mod attempt_age;
pub mod batching;
pub mod client;
pub mod count;
pub mod decide;
pub mod fresh_read;
pub mod known_ledgers;
pub mod limiter;
pub mod provision;
pub mod resolve;
pub mod round;
pub mod round_attempt;
pub mod scope_cache;
pub mod write_order;
