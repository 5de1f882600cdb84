//! What strangers on the network and tenants try, and why it does no harm.

mod client_certificates;
mod metrics;
mod strangers;
