//! Tests of the test cluster itself: it boots, simulated pods follow their annotations, and no process is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "test_cluster/boot.rs"]
mod boot;
#[path = "test_cluster/components.rs"]
mod components;
#[path = "test_cluster/existing_cluster.rs"]
mod existing_cluster;
#[path = "test_cluster/fault_proxy.rs"]
mod fault_proxy;
#[path = "test_cluster/load_balancer.rs"]
mod load_balancer;
#[path = "test_cluster/missing_programs.rs"]
mod missing_programs;
#[path = "test_cluster/pair.rs"]
mod pair;
#[path = "test_cluster/playground.rs"]
mod playground;
#[path = "test_cluster/pod_logs.rs"]
mod pod_logs;
#[path = "test_cluster/process_cleanup.rs"]
mod process_cleanup;
#[path = "test_cluster/simulated_pods.rs"]
mod simulated_pods;
