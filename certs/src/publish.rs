//! Publishes the CA as the `caBundle` of the MutatingWebhookConfiguration. Writes are guarded by resourceVersion, and read
//! back.

use job_handler_shared::kube::error::{ApiError, call};
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// Most attempts to read and write. An attempt fails if another client writes in between.
const MAX_ATTEMPTS: usize = 5;

/// Why the `caBundle` cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A call to the apiserver failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The configuration does not exist.
    #[error("MutatingWebhookConfiguration {0} does not exist: apply manifests/base, which has it")]
    Missing(String),
    /// The configuration has no webhooks.
    #[error("MutatingWebhookConfiguration {0} has no webhooks: apply manifests/base again, which has them")]
    Empty(String),
    /// Another client keeps writing.
    #[error(
        "MutatingWebhookConfiguration {0} changed under each of {MAX_ATTEMPTS} attempts to write its caBundle: \
         does another program, such as cert-manager's cainjector, write it, too?"
    )]
    Contended(String),
}

/// Reads and writes the `caBundle` of one MutatingWebhookConfiguration.
#[derive(Clone)]
pub struct Publisher {
    pub(crate) api: Api<MutatingWebhookConfiguration>,
    pub(crate) name: String,
}

impl Publisher {
    /// Reads and writes `configuration` through `client`.
    pub fn new(client: Client, configuration: &str) -> Self {
        Self { api: Api::all(client), name: configuration.to_owned() }
    }

    /// Whether every webhook of the configuration has `bundle`.
    ///
    /// # Errors
    /// If the configuration does not exist or cannot be read.
    pub async fn is_published(&self, bundle: &str) -> Result<bool, PublishError> {
        Ok(patch_for(&self.read().await?, bundle).is_none())
    }

    /// Writes `bundle` into webhooks that have another one, and reads it back. Calls `on_difference` before the first
    /// write. Returns whether it wrote.
    ///
    /// # Errors
    /// If the configuration does not exist, cannot be written, or changes during each attempt.
    pub async fn publish(&self, bundle: &str, on_difference: impl Fn() + Sync) -> Result<bool, PublishError> {
        for attempt in 0..MAX_ATTEMPTS {
            // A watch may be behind, so this reads from the apiserver.
            let Some(patch) = patch_for(&self.read().await?, bundle) else { return Ok(attempt > 0) };
            if attempt == 0 {
                on_difference();
            }
            let patch: Patch<Value> =
                Patch::Json(serde_json::from_value(patch).map_err(|e| self.invalid_patch(e))?);
            let what = &format!("patch MutatingWebhookConfiguration {}", self.name);
            match call(what, self.api.patch(&self.name, &PatchParams::default(), &patch)).await {
                Ok(_) => tracing::debug!(configuration = %self.name, "wrote the caBundle"),
                Err(error) if error.is_conflict() || error.is_failed_test() => {
                    tracing::debug!(%error, "the configuration changed; reading it again");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Contended(self.name.clone()))
    }

    async fn read(&self) -> Result<MutatingWebhookConfiguration, PublishError> {
        let what = &format!("get MutatingWebhookConfiguration {}", self.name);
        let found = call(what, self.api.get_opt(&self.name)).await?;
        let configuration = found.ok_or_else(|| PublishError::Missing(self.name.clone()))?;
        if configuration.webhooks.as_ref().is_none_or(Vec::is_empty) {
            return Err(PublishError::Empty(self.name.clone()));
        }
        Ok(configuration)
    }

    fn invalid_patch(&self, error: serde_json::Error) -> PublishError {
        let what = format!("patch MutatingWebhookConfiguration {}", self.name);
        ApiError::Broken { what, source: Box::new(kube::Error::SerdeError(error)) }.into()
    }
}

/// A JSON Patch that sets `bundle` in each webhook; none if all have it. A merge patch would replace the full list, and a
/// PUT of the typed object would drop fields of newer servers. The `test` operation makes the apiserver reject the patch
/// if the object has changed.
fn patch_for(configuration: &MutatingWebhookConfiguration, bundle: &str) -> Option<Value> {
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let mut operations = Vec::new();
    for (n, webhook) in configuration.webhooks.iter().flatten().enumerate() {
        if webhook.client_config.ca_bundle.as_ref() != Some(&wanted) {
            let path = format!("/webhooks/{n}/clientConfig/caBundle");
            operations.push(json!({"op": "add", "path": path, "value": wanted}));
        }
    }
    if operations.is_empty() {
        return None;
    }
    let version = configuration.resource_version().unwrap_or_default();
    operations.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    Some(Value::Array(operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(bundles: &[Option<&str>]) -> MutatingWebhookConfiguration {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let webhooks: Vec<Value> = bundles
            .iter()
            .enumerate()
            .map(|(n, bundle)| {
                json!({
                    "name": format!("w{n}.example"),
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "clientConfig": {"url": "https://127.0.0.1", "caBundle": bundle.map(|b| STANDARD.encode(b))},
                })
            })
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "c", "resourceVersion": "7"}, "webhooks": webhooks}),
        )
        .unwrap()
    }

    #[test]
    fn the_patch_has_only_differences_and_tests_the_revision() {
        assert_eq!(patch_for(&configuration(&[Some("ca")]), "ca"), None);
        let patch = patch_for(&configuration(&[None, Some("ca"), Some("old")]), "ca").unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Y2E="},
                {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "Y2E="},
            ])
        );
    }
}
