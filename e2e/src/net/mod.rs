//! Network programs for tests: a proxy that injects faults into calls to the API server (`fault_proxy/`), the load
//! balancer in front of the webhooks, an HTTPS client, plain HTTP for admin endpoints, metrics, and a receiver of
//! CloudEvents.

pub mod cloudevents_receiver;
pub mod fault_proxy;
pub mod http_probe;
pub mod https_client;
pub mod load_balancer;
pub mod metrics;
