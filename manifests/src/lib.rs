//! Kubernetes manifests, and the tests that hold them against the code.
//!
//! [`crds`] renders the CRDs in `crds/` from the types of [`job_handler_shared::policy::spec`] and
//! [`job_handler_shared::ledger::crd`]; [`policy_reference()`] renders the tables of `shared/README.md`. A test fails where
//! the files differ. Everything else is written by hand; the tests in `tests/` compare its names, ports, paths and rights
//! with [`job_handler_shared::keys`].

mod policy_reference;

use job_handler_shared::{
    ledger::crd::JobLedger,
    policy::spec::{ClusterJobPolicy, JobPolicy},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_norway::Value;

pub use crate::policy_reference::{described_values, policy_reference};

/// The command that rewrites the generated files.
pub const UPDATE_COMMAND: &str = "UPDATE_MANIFESTS=1 cargo test -p job-handler-manifests";

/// A generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Path below `manifests/`.
    pub path: String,
    /// Expected content.
    pub text: String,
}

/// A CRD that cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("the CRD {name} cannot be written as YAML: {source}")]
pub struct CrdRenderError {
    /// Name of the CRD.
    pub name: String,
    /// Error of the YAML serializer.
    pub source: serde_norway::Error,
}

/// Renders all CRDs.
///
/// # Errors
/// Fails if a schema contains something that YAML cannot express.
pub fn crds() -> Result<Vec<GeneratedFile>, CrdRenderError> {
    [ClusterJobPolicy::crd(), JobPolicy::crd(), JobLedger::crd()].iter().map(render).collect()
}

fn render(crd: &CustomResourceDefinition) -> Result<GeneratedFile, CrdRenderError> {
    let wrong = |source| CrdRenderError { name: crd.spec.names.plural.clone(), source };
    let mut value = serde_norway::to_value(crd).map_err(wrong)?;
    add_bounds(&mut value);
    let yaml = serde_norway::to_string(&value).map_err(wrong)?;
    let header = format!(
        "# Generated from the types in shared/src/policy and shared/src/ledger; do not edit.\n# Rewrite: {UPDATE_COMMAND}\n"
    );
    Ok(GeneratedFile { path: format!("crds/crd-{}.yaml", crd.spec.names.plural), text: header + &yaml })
}

/// Replaces `format: uint32` and `uint64` by bounds. The apiserver knows neither format (it warns at apply and does not
/// check them), and a single policy with a larger number would break the watch of all policies.
fn add_bounds(value: &mut Value) {
    match value {
        Value::Mapping(schema) => {
            let format = schema.get("format").and_then(Value::as_str).map(str::to_owned);
            if let Some("uint32" | "uint64") = format.as_deref() {
                schema.remove("format");
                schema.entry("minimum".into()).or_insert(Value::from(0));
            }
            // No maximum for uint64: the apiserver stores numbers as int64.
            if format.as_deref() == Some("uint32") {
                schema.entry("maximum".into()).or_insert(Value::from(u32::MAX));
            }
            schema.iter_mut().for_each(|(_, inner)| add_bounds(inner));
        }
        Value::Sequence(items) => items.iter_mut().for_each(add_bounds),
        _ => {}
    }
}
