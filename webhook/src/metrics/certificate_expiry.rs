//! When the serving certificate expires, as a metric: asked at each scrape, so that it cannot be behind.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};

/// Asks when the certificate expires.
pub struct Expiry(Box<dyn Fn() -> Option<i64> + Send + Sync>);

impl Expiry {
    /// `ask` gives seconds since 1970; nothing while there is no certificate.
    pub fn new(ask: impl Fn() -> Option<i64> + Send + Sync + 'static) -> Self {
        Self(Box::new(ask))
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Expiry")
    }
}

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(seconds) = (self.0)() else { return Ok(()) };
        let gauge = ConstGauge::new(seconds);
        let metric = encoder.encode_descriptor(
            "job_handler_certificate_expiry_timestamp_seconds",
            "When the serving certificate expires, seconds since 1970",
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
    fn it_is_asked_at_each_scrape_and_silent_without_a_certificate() {
        for (expires, told) in [(Some(7), true), (None, false)] {
            let metrics = Metrics::default();
            metrics.register(|registry| registry.register_collector(Box::new(Expiry::new(move || expires))));
            let text = metrics.encode().unwrap();
            let line = "job_handler_certificate_expiry_timestamp_seconds 7\n";
            assert_eq!(text.contains(line), told, "{text}");
        }
    }
}
