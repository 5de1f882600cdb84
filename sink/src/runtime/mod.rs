//! Work queue, concurrency limits, leader election.

pub mod concurrency;
pub mod leader_election;
pub mod resync;
pub mod work_queue;
