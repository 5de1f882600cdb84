//! Writes results.

pub mod packed;
pub mod storage;
pub mod writer;
