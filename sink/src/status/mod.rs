//! Policy status: conditions, writer, cluster summary.

pub mod conditions;
pub mod summary;
pub mod writer;
