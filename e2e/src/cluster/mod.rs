//! A Kubernetes cluster for tests: a new one, or an existing one.
//!
//! [`Cluster::start`] (`test_cluster.rs`, read it first) starts the processes that `components.rs` describes, with the
//! certificates of `pki.rs` and the simulated nodes of `nodes.rs`, or connects to an existing cluster (`external.rs`).
//! `jobs.rs`, `kubectl.rs` and `namespace.rs` add operations for tests.

mod component_handle;
mod components;
mod external;
pub mod jobs;
mod kubectl;
pub mod namespace;
mod nodes;
mod options;
mod pki;
mod test_cluster;

pub use component_handle::ComponentHandle;
pub use components::Component;
pub use external::on_path;
pub use kubectl::KubectlOutput;
pub use options::{AuditLevel, ClusterOptions, E2E_AUDIT_FOLDER, E2E_KUBECONFIG};
pub use test_cluster::Cluster;
