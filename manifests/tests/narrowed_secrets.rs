//! The overlay with the rights to Secrets of some namespaces does not give those of all.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use files::{documents, object};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use serde_json::{Value, json};

const ROLE: &str = "job-handler-sink-secrets";

#[test]
fn the_role_is_bound_in_the_namespaces_instead_of_the_cluster() {
    let folder = "overlays/namespaces-secrets";
    let [kustomization] =
        documents(&format!("{folder}/kustomization.yaml")).try_into().expect("one document");
    assert_eq!(kustomization["resources"], json!(["../secrets", "rbac.yaml"]));
    let patch: Value =
        serde_norway::from_str(kustomization["patches"][0]["patch"].as_str().unwrap()).unwrap();
    assert_eq!((&patch["$patch"], &patch["metadata"]["name"]), (&json!("delete"), &json!(ROLE)));
    let everywhere: ClusterRoleBinding =
        object("overlays/secrets/rbac.yaml", patch["kind"].as_str().unwrap(), ROLE);
    let rbac = format!("{folder}/rbac.yaml");
    assert_eq!(documents(&rbac).len(), 1);
    let here: RoleBinding = object(&rbac, "RoleBinding", ROLE);
    assert_eq!(here.metadata.namespace.as_deref(), Some("ci"), "as in overlays/namespaces");
    assert_eq!((here.role_ref, here.subjects), (everywhere.role_ref, everywhere.subjects));
    // Nothing else binds the role.
    let bindings = documents("overlays/secrets/rbac.yaml");
    assert_eq!(bindings.iter().filter(|document| document["kind"] != "ClusterRole").count(), 1);
}
