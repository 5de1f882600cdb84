//! The webhook's metrics. Labels never hold the name of a Job, so their number is bounded.
//!
//! Start with `webhook_metrics.rs`, which registers them with their help texts. `labels.rs` holds the labels,
//! `certificate_expiry.rs` and `path_overdue.rs` a gauge each that is computed at each scrape.

pub(crate) mod certificate_expiry;
mod labels;
pub(crate) mod path_overdue;
mod webhook_metrics;

pub use labels::Endpoint;
pub(crate) use labels::ReviewVerdict;
pub use webhook_metrics::WebhookMetrics;
