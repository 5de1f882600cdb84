//! Which results are deleted, and their deletion.

pub mod gc;
pub mod object_gc;
pub mod plan;
