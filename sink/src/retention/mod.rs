//! Deletes stored results that exceed the bounds of their policies or of the cluster.
//!
//! In: the inventory of results ([`crate::observe::result_inventory`]). Out: deletions. [`plan`] decides, [`gc`] deletes
//! results and shards, [`object_gc`] folders of the object store. Read [`plan`] first.

pub mod gc;
pub mod object_gc;
pub(crate) mod plan;
