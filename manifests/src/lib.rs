//! The Kubernetes manifests, held against the code by tests.
//!
//! The CRDs in `crds/` are generated from the policy types of [`job_handler_shared::policy`]; [`crds`] renders them, and
//! a test fails where the files differ. Everything else is written by hand; the tests in `tests/` hold every name,
//! port, path and right in it against [`job_handler_shared::keys`].

use job_handler_shared::policy::{ClusterJobPolicy, JobPolicy};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// What rewrites the generated files.
pub const UPDATE_COMMAND: &str = "UPDATE_MANIFESTS=1 cargo test -p job-handler-manifests";

/// A generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Its place below `manifests/`.
    pub path: String,
    /// What has to be in it.
    pub text: String,
}

/// Why a file could not be generated.
#[derive(Debug, thiserror::Error)]
#[error("the CRD {name} cannot be written as YAML: {source}")]
pub struct RenderError {
    /// Name of the CRD.
    pub name: String,
    /// Why.
    pub source: serde_norway::Error,
}

/// Every CRD as a file.
///
/// # Errors
/// Where a schema has something that YAML cannot express.
pub fn crds() -> Result<Vec<Generated>, RenderError> {
    [ClusterJobPolicy::crd(), JobPolicy::crd()].iter().map(render).collect()
}

fn render(crd: &CustomResourceDefinition) -> Result<Generated, RenderError> {
    let yaml = serde_norway::to_string(crd)
        .map_err(|source| RenderError { name: crd.spec.names.plural.clone(), source })?;
    let header = format!(
        "# Generated from the types in shared/src/policy.rs; do not edit.\n# Rewrite: {UPDATE_COMMAND}\n"
    );
    Ok(Generated { path: format!("crds/crd-{}.yaml", crd.spec.names.plural), text: header + &yaml })
}
