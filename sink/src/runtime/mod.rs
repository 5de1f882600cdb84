//! Work queue, concurrency limits, leader election.

pub(crate) mod concurrency;
pub(crate) mod lanes;
pub mod leader_election;
pub mod resync;
pub mod work_queue;
