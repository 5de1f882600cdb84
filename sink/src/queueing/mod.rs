//! The queue of suspended Jobs: release, position Events, failure backoff.

pub mod dequeued_by_user;
pub mod failure_backoff;
pub mod position_events;
pub mod release;
pub mod slots;
