//! What the watches keep in memory.

pub mod consistent_list;
pub mod job_watch;
pub mod jobs;
pub mod policies;
pub mod reflector;
pub mod tombstones;
pub mod ttl_map;
