//! The sink's metrics. Labels never hold the name of a Job, so their number is bounded.
//!
//! Start with `sink_metrics.rs`, which registers them with their help texts. `labels.rs` holds the labels.

mod labels;
mod sink_metrics;

pub use sink_metrics::SinkMetrics;
