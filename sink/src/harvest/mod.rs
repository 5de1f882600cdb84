//! Collects pod states and logs and packs them into a result.
//!
//! In: pods of the watch and of lists, and log streams. Out: a packed result ([`crate::result::packed`]). Two paths lead
//! there: [`follower`] captures logs of unfinished Jobs whose pods may be deleted, into [`pod_tracker`]; [`collector`] reads
//! everything else once the Job has finished, and [`pack`] makes the result. Both read with [`log_reader`]; its limits and
//! timeouts are in [`tuning`]. Read [`collector`] first.

pub(crate) mod at_risk;
pub mod captured;
pub mod collector;
pub(crate) mod failure;
pub(crate) mod follower;
mod full_logs;
pub(crate) mod job_pods;
mod log_budget;
pub mod log_buffer;
mod log_reader;
mod log_sections;
mod log_stream;
mod node_health;
mod node_limits;
pub mod pack;
mod placeholder;
mod pod_facts;
mod pod_status;
pub mod pod_tracker;
mod read_failure;
pub(crate) mod redact;
mod telling_line;
mod tracked_pod;
mod tracker_state;
pub(crate) mod tuning;
