//! Options of a cluster.

/// Environment variable: the kubeconfig of an existing cluster to use instead of starting one.
pub const E2E_KUBECONFIG: &str = "E2E_KUBECONFIG";

/// Environment variable: a folder for the audit logs of all clusters, for the test `used_rights`.
pub const E2E_AUDIT_FOLDER: &str = "E2E_AUDIT_FOLDER";

/// The level of the API server's audit log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLevel {
    /// No audit log.
    None,
    /// User, verb, object, time, user agent and status code.
    #[default]
    Metadata,
    /// Request bodies too.
    Request,
    /// Response bodies too.
    RequestResponse,
}

/// Options of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The API server's port; a free one by default.
    pub port: Option<u16>,
    /// The number of simulated nodes.
    pub nodes: usize,
    /// One real node, with containerd and kubelet, instead of the simulated ones; see
    /// [`missing_for_real_node`](crate::real_node::missing_for_real_node).
    pub real_node: bool,
    /// The level of the audit log.
    pub audit: AuditLevel,
    /// The number of API servers on the one etcd, at most 3. The components use the first.
    pub apiservers: usize,
    /// More arguments for each API server.
    pub apiserver_arguments: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            port: None,
            nodes: 2,
            real_node: false,
            audit: AuditLevel::default(),
            apiservers: 1,
            apiserver_arguments: Vec::new(),
        }
    }
}
