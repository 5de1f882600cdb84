//! Harvests of finished Jobs.
//!
//! [`measure`](mod@measure) (`measure.rs`) compares the sink with a loop that makes the same calls without checks
//! (`throughput.rs`), and measures its lag (`lag.rs`), its memory and processor time (`sink_cost.rs`) and how soon
//! failed Jobs are deleted. [`fault_isolation`] measures harvests beside faulty Jobs ([`disturbance`]),
//! [`receiver_down`] the memory of pending CloudEvents. All run on a [`cluster::HarvestCluster`], where Jobs finish
//! only because the benchmark writes their status.

pub mod cluster;
pub mod disturbance;
pub mod fault_isolation;
mod lag;
mod measure;
pub mod receiver_down;
mod sink_cost;
mod throughput;

pub use measure::{HarvestSizes, measure};
