//! The Kubernetes manifests, held against the code by tests.
//!
//! The CRDs in `crds/` are generated from the types of [`job_handler_shared::policy::spec`] and
//! [`job_handler_shared::ledger::crd`]; [`crds`] renders them, and
//! a test fails where the files differ. Everything else is written by hand; the tests in `tests/` hold every name,
//! port, path and right in it against [`job_handler_shared::keys`].

use job_handler_shared::{
    ledger::crd::JobLedger,
    policy::spec::{ClusterJobPolicy, JobPolicy},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_norway::Value;

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
    [ClusterJobPolicy::crd(), JobPolicy::crd(), JobLedger::crd()].iter().map(render).collect()
}

fn render(crd: &CustomResourceDefinition) -> Result<Generated, RenderError> {
    let wrong = |source| RenderError { name: crd.spec.names.plural.clone(), source };
    let mut value = serde_norway::to_value(crd).map_err(wrong)?;
    state_bounds(&mut value);
    let yaml = serde_norway::to_string(&value).map_err(wrong)?;
    let header = format!(
        "# Generated from the types in shared/src/{{policy,ledger}}.rs; do not edit.\n# Rewrite: {UPDATE_COMMAND}\n"
    );
    Ok(Generated { path: format!("crds/crd-{}.yaml", crd.spec.names.plural), text: header + &yaml })
}

/// Says in bounds what `format: uint32` and `uint64` mean. The apiserver knows neither (it warns at apply and checks
/// nothing), and one policy with a number beyond them would break the watch of all policies.
fn state_bounds(value: &mut Value) {
    match value {
        Value::Mapping(schema) => {
            let format = schema.get("format").and_then(Value::as_str).map(str::to_owned);
            if let Some("uint32" | "uint64") = format.as_deref() {
                schema.remove("format");
                schema.entry("minimum".into()).or_insert(Value::from(0));
            }
            // None for uint64: the apiserver holds numbers as int64 anyway.
            if format.as_deref() == Some("uint32") {
                schema.entry("maximum".into()).or_insert(Value::from(u32::MAX));
            }
            schema.iter_mut().for_each(|(_, inner)| state_bounds(inner));
        }
        Value::Sequence(items) => items.iter_mut().for_each(state_bounds),
        _ => {}
    }
}
