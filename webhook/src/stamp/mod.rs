//! What is set on a Job, and as which JSON Patch operations.

pub mod container_resources;
pub mod decide;
pub mod fields;
pub mod patch;
pub mod select;
