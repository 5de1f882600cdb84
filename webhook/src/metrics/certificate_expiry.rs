//! Expiry of the serving certificate, computed at each scrape so that it is never stale.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

/// Exports when the serving certificate expires.
pub(crate) struct CertificateExpiry(Box<dyn Fn() -> Option<i64> + Send + Sync>);

impl CertificateExpiry {
    /// `expiry` returns Unix time in seconds, or none while there is no certificate.
    pub(crate) fn new(expiry: impl Fn() -> Option<i64> + Send + Sync + 'static) -> Self {
        Self(Box::new(expiry))
    }
}

impl fmt::Debug for CertificateExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateExpiry")
    }
}

impl Collector for CertificateExpiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(seconds) = (self.0)() else { return Ok(()) };
        let gauge = ConstGauge::new(seconds);
        let metric = encoder.encode_descriptor(
            "job_handler_certificate_expiry_timestamp_seconds",
            "Expiry of the serving certificate, as Unix time in seconds",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::process::telemetry::Metrics;

    use super::*;

    #[test]
    fn the_metric_is_absent_without_a_certificate() {
        for (expires, exported) in [(Some(7), true), (None, false)] {
            let metrics = Metrics::default();
            metrics.register(|registry| {
                registry.register_collector(Box::new(CertificateExpiry::new(move || expires)));
            });
            let text = metrics.encode().unwrap();
            let line = "job_handler_certificate_expiry_timestamp_seconds 7\n";
            assert_eq!(text.contains(line), exported, "{text}");
        }
    }
}
