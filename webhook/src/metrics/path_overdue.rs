//! How long a replacement of the secret in the paths of reviews is overdue, computed at each scrape.

use std::fmt;

use job_handler_certs::review_path::ReviewPaths;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

/// Exports for how long the published secret should have been replaced already.
#[derive(Debug)]
pub(crate) struct PathOverdue(pub(crate) ReviewPaths);

impl Collector for PathOverdue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(overdue) = self.0.overdue() else { return Ok(()) };
        let gauge = ConstGauge::new(overdue.as_secs_f64());
        let metric = encoder.encode_descriptor(
            "job_handler_path_overdue_seconds",
            "How long the replacement of the secret in the paths of reviews is overdue, in seconds",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(metric)
    }
}
