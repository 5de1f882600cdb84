//! A real Kubernetes for tests, the demo, the playground, scenarios and benchmarks.
//!
//! [`Cluster::start`] boots the real control plane as processes on loopback in seconds, with nodes simulated by KWOK:
//! Jobs run through the real scheduler and Job controller, and annotations on a pod control what happens inside it (see
//! `e2e/README.md`). With [`ClusterOptions::real_node`], real containers run instead. No process is left, however the
//! caller ends.

pub mod bench;
pub mod build;
pub mod cluster;
pub mod demo;
pub mod etcd_history;
pub mod harness;
pub mod net;
pub mod pair;
pub mod real_node;

pub use cluster::namespace::TestNamespace;
pub use cluster::{AuditLevel, Cluster, ClusterOptions, Component};
pub use etcd_history::History;
pub use harness::error::{Error, Result};
pub use harness::wait::wait_for;
pub use net::fault_proxy::FaultProxy;
pub use net::https_client::HttpsClient;
pub use pair::{Member, Pair, PairOptions};
