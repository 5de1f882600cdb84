//! Proxies, load balancer, HTTP clients and receivers for tests.

pub mod cloudevents_receiver;
pub mod fault_proxy;
pub mod http_probe;
pub mod https_client;
pub mod load_balancer;
pub mod metrics;
