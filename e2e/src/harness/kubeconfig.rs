//! Kubeconfigs, and files that only their owner may read.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::error::{Error, Result};

/// A kubeconfig with one context.
pub(crate) fn kubeconfig(server: &str, ca_pem: &[u8], user: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": cluster_entry(server, ca_pem)}],
        "users": [{"name": "e2e", "user": user}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e", "namespace": "default"}}],
    })
}

/// The entry of a kubeconfig for an API server.
pub(crate) fn cluster_entry(server: &str, ca_pem: &[u8]) -> Value {
    json!({"server": server, "certificate-authority-data": base64(ca_pem)})
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(Error::io(format!("writing {}", path.display())))
}

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
