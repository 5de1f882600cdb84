//! Writes results.

pub mod storage;
pub mod writer;
