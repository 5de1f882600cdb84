//! What kind of cluster to start.

/// Names the kubeconfig of an existing cluster to use instead of starting one.
pub const E2E_KUBECONFIG: &str = "E2E_KUBECONFIG";

/// How much the API server's audit log tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLevel {
    /// No audit log.
    None,
    /// Who did what when, with which user agent, to which answer.
    #[default]
    Metadata,
    /// Also the objects that were sent.
    Request,
    /// Also the objects that were returned.
    RequestResponse,
}

/// What kind of cluster to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The API server's port; any free one if absent.
    pub port: Option<u16>,
    /// How many nodes KWOK plays.
    pub nodes: usize,
    /// How much the audit log tells.
    pub audit: AuditLevel,
    /// More arguments for the API server.
    pub apiserver_arguments: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { port: None, nodes: 2, audit: AuditLevel::default(), apiserver_arguments: Vec::new() }
    }
}
