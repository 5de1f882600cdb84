//! The ground itself: the cluster boots, Jobs fare as their annotations say, nothing is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets what it does not expect fails"
)]

#[path = "ground/balancer.rs"]
mod balancer;
#[path = "ground/boot.rs"]
mod boot;
#[path = "ground/components.rs"]
mod components;
#[path = "ground/external.rs"]
mod external;
#[path = "ground/leftovers.rs"]
mod leftovers;
#[path = "ground/logs.rs"]
mod logs;
#[path = "ground/missing.rs"]
mod missing;
#[path = "ground/pair.rs"]
mod pair;
#[path = "ground/playground.rs"]
mod playground;
#[path = "ground/pods.rs"]
mod pods;
#[path = "ground/proxy.rs"]
mod proxy;
