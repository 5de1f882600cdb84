//! The queue of suspended Jobs.
//!
//! In: unfinished Jobs with the limits that apply to them, and ledgers with failure streaks. Out: patches that
//! un-suspend Jobs, Events that say why a Job waits, and streaks written to the ledgers. [`release`] runs the loop;
//! `release_order` and `queue_position` decide, without I/O.

pub(crate) mod dequeued_by_user;
pub(crate) mod failure_backoff;
pub(crate) mod position_events;
pub(crate) mod queue_position;
pub(crate) mod release;
pub(crate) mod release_order;
pub(crate) mod slots;
