//! A real Kubernetes to test on; demo, playground, scenarios, benchmarks.
//!
//! [`Cluster::start`] boots the real control plane as processes on loopback in seconds, with nodes
//! played by KWOK: Jobs run through the real scheduler and Job controller, and how each pod fares is
//! written as annotations on it (see `e2e/README.md`). Nothing is left behind, however the caller ends.

pub mod bench;
pub mod build;
pub mod cluster;
pub mod demo;
pub mod etcd_history;
pub mod harness;
pub mod net;
pub mod pair;

pub use cluster::namespace::TestNamespace;
pub use cluster::{AuditLevel, Cluster, ClusterOptions, Component};
pub use etcd_history::History;
pub use harness::error::{Error, Result};
pub use harness::wait::wait_for;
pub use net::fault_proxy::FaultProxy;
pub use net::https_client::HttpsClient;
pub use pair::{Member, Pair, PairOptions};
