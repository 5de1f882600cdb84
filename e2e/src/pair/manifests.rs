//! Changes to the installed objects.

use std::path::Path;

use job_handler_shared::keys::MUTATING_CONFIGURATION;
use job_handler_shared::webhook_address;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};

/// Sets fields (such as `clientConfig/url`) of both stamping webhooks, for creates and for updates.
///
/// # Errors
/// If the API server refuses.
pub async fn patch_stamping_webhooks(client: kube::Client, fields: &[(&str, Value)]) -> Result<()> {
    let set = |n: usize, (field, value): &(&str, Value)| json!({"op": "add", "path": format!("/webhooks/{n}/{field}"), "value": value});
    let changes: Vec<Value> = (0..2).flat_map(|n| fields.iter().map(move |field| set(n, field))).collect();
    let changes = serde_json::from_value(changes.into())
        .map_err(|error| Error::Invalid(format!("a patch of {MUTATING_CONFIGURATION}: {error}")))?;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    configurations
        .patch(MUTATING_CONFIGURATION, &PatchParams::default(), &Patch::<()>::Json(changes))
        .await
        .map(drop)
        .map_err(Error::api("changing the webhooks that stamp"))
}

/// The path of a review endpoint, with the secret that is published now. A path is valid until its secret was replaced
/// twice.
///
/// # Errors
/// If the API server refuses, or no secret is published.
pub async fn review_path(client: kube::Client, endpoint: &str) -> Result<String> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let found = configurations
        .get(MUTATING_CONFIGURATION)
        .await
        .map_err(Error::api("reading the webhook's address"))?;
    let mut webhooks = found.webhooks.iter().flatten();
    let secret = webhooks.find_map(|webhook| webhook_address::secret(webhook.client_config.url.as_deref()?));
    let missing = || Error::Invalid(format!("{MUTATING_CONFIGURATION} has no secret in its URLs"));
    Ok(webhook_address::with_secret("", secret.ok_or_else(missing)?, endpoint))
}

/// Grants both programs the rights for `--metrics-auth`, with the role of `manifests/overlays/metrics-auth`.
///
/// # Errors
/// If the API server refuses.
pub async fn allow_metrics_auth(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-f", &manifests("overlays/metrics-auth/rbac.yaml")]).await.map(drop)
}

/// Applies `manifests/samples`.
///
/// # Errors
/// If the API server refuses one.
pub async fn apply_samples(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-f", &manifests("samples")]).await.map(drop)
}

/// Grants the sinks' ServiceAccount the opt-in rights on Secrets: applies `manifests/overlays/secrets`.
///
/// # Errors
/// If the API server refuses.
pub async fn allow_secrets(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-k", &manifests("overlays/secrets")]).await.map(drop)
}

/// Revokes these rights.
///
/// # Errors
/// If the API server refuses.
pub async fn forbid_secrets(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "-k", &manifests("overlays/secrets")]).await.map(drop)
}

fn manifests(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(folder).display().to_string()
}
