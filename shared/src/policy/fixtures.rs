//! Policies for unit tests.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::policy::{
    parsed::Policy,
    reference::Labels,
    spec::{ClusterJobPolicy, JobPolicy},
};

pub fn namespaced(name: &str, spec: Value) -> Arc<Policy> {
    let policy: JobPolicy = serde_json::from_value(json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
        "metadata": {"name": name, "namespace": "ci", "uid": name}, "spec": spec,
    }))
    .unwrap();
    Arc::new(Policy::namespaced(&policy).unwrap())
}

pub fn cluster(name: &str, spec: Value) -> Arc<Policy> {
    let policy: ClusterJobPolicy = serde_json::from_value(json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy",
        "metadata": {"name": name, "uid": name}, "spec": spec,
    }))
    .unwrap();
    Arc::new(Policy::cluster(&policy).unwrap())
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
