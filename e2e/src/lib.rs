//! A real Kubernetes to test on; demo, playground, scenarios, benchmarks.
//!
//! [`Cluster::start`] boots the real control plane as processes on loopback in seconds, with nodes
//! played by KWOK: Jobs run through the real scheduler and Job controller, and how each pod fares is
//! written as annotations on it (see `e2e/README.md`). Nothing is left behind, however the caller ends.

mod background;
pub mod balancer;
pub mod bench;
pub mod build;
pub mod cluster;
pub mod demo;
pub mod error;
pub mod history;
pub mod http_probe;
pub mod https;
pub mod jobs;
pub mod kubectl;
pub mod namespace;
pub mod pair;
pub mod ports;
pub mod process;
pub mod progress;
pub mod proxy;
pub mod receiver;
pub mod wait;

pub use cluster::{AuditLevel, Cluster, ClusterOptions, Component};
pub use error::{Error, Result};
pub use history::History;
pub use https::Https;
pub use namespace::TestNamespace;
pub use pair::{Member, Pair, PairOptions};
pub use proxy::FaultProxy;
pub use wait::wait_for;
