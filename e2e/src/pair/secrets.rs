//! The opt-in rights on Secrets, for the sinks that run as local processes.

use std::path::Path;

use job_handler_shared::keys::NAMESPACE;
use serde_json::json;

use crate::cluster::Cluster;
use crate::harness::error::Result;

const ROLE: &str = "job-handler-sink-secrets";

/// Applies `manifests/overlays/secrets`, and binds its role to the account that local sinks have.
///
/// # Errors
/// If the API server refuses either.
pub async fn allow_secrets(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-k", &overlay()]).await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": format!("{ROLE}-local")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": "job-handler-sink", "namespace": NAMESPACE}],
    });
    cluster.kubectl_with_input(&["apply", "-f", "-"], &binding.to_string()).await.map(drop)
}

/// Takes the rights away again.
///
/// # Errors
/// If the API server refuses.
pub async fn forbid_secrets(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "clusterrolebinding", &format!("{ROLE}-local")]).await?;
    cluster.kubectl(&["delete", "-k", &overlay()]).await.map(drop)
}

fn overlay() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/secrets").display().to_string()
}
