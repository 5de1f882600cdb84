//! Policies.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::policy::{parsed::Policy, reference::Labels};

/// A JobPolicy of namespace `ci` whose uid is its name.
pub fn namespaced(name: &str, spec: Value) -> Arc<Policy> {
    job_policy(json!({"name": name, "namespace": "ci", "uid": name}), spec)
}

/// A ClusterJobPolicy whose uid is its name.
pub fn cluster(name: &str, spec: Value) -> Arc<Policy> {
    cluster_job_policy(json!({"name": name, "uid": name}), spec)
}

/// A JobPolicy with this metadata.
pub fn job_policy(metadata: Value, spec: Value) -> Arc<Policy> {
    let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": metadata, "spec": spec});
    Arc::new(Policy::namespaced(&serde_json::from_value(policy).unwrap()).unwrap())
}

/// A ClusterJobPolicy with this metadata.
pub fn cluster_job_policy(metadata: Value, spec: Value) -> Arc<Policy> {
    let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": metadata, "spec": spec});
    Arc::new(Policy::cluster(&serde_json::from_value(policy).unwrap()).unwrap())
}

/// Labels of these keys and values.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
