//! The `caBundle` of the MutatingWebhookConfiguration: written by resourceVersion, read back, kept there.

use job_handler_shared::kube::error::{ApiError, call};
use k8s_openapi::{
    ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration as Configuration,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

/// Rounds of read and write within one turn; each lost one means that somebody else wrote meanwhile.
const ROUNDS: usize = 5;

/// Why the bundle is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The apiserver.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Nothing to publish into.
    #[error("MutatingWebhookConfiguration {0} does not exist: apply manifests/base, which has it")]
    Missing(String),
    /// Nothing to publish into.
    #[error("MutatingWebhookConfiguration {0} has no webhooks: apply manifests/base again, which has them")]
    Empty(String),
    /// Somebody else keeps writing.
    #[error(
        "MutatingWebhookConfiguration {0} changed under each of {ROUNDS} attempts to write its caBundle: \
         does another program (such as cert-manager's cainjector) keep it too?"
    )]
    Contended(String),
}

/// Keeps one MutatingWebhookConfiguration's `caBundle`.
#[derive(Clone)]
pub struct Publisher {
    pub(crate) api: Api<Configuration>,
    pub(crate) name: String,
}

impl Publisher {
    /// Reads and writes `configuration` through `client`.
    pub fn new(client: Client, configuration: &str) -> Self {
        Self { api: Api::all(client), name: configuration.to_owned() }
    }

    /// Whether every webhook of the configuration has `bundle` now.
    ///
    /// # Errors
    /// Where there is no such configuration, or it cannot be read.
    pub async fn is_published(&self, bundle: &str) -> Result<bool, PublishError> {
        Ok(patch_for(&self.read().await?, bundle).is_none())
    }

    /// Writes `bundle` where it differs and reads it back; `differs` runs before the first write. True where it wrote.
    ///
    /// # Errors
    /// Where there is no such configuration, it cannot be written, or it changes all the time.
    pub async fn publish(&self, bundle: &str, differs: impl Fn() + Sync) -> Result<bool, PublishError> {
        for round in 0..ROUNDS {
            // Not the cached state of a watch: only a fresh read tells what the apiserver has now.
            let Some(patch) = patch_for(&self.read().await?, bundle) else { return Ok(round > 0) };
            if round == 0 {
                differs();
            }
            let patch: Patch<Value> = Patch::Json(serde_json::from_value(patch).map_err(|e| self.odd(e))?);
            let what = &format!("patch MutatingWebhookConfiguration {}", self.name);
            match call(what, self.api.patch(&self.name, &PatchParams::default(), &patch)).await {
                Ok(_) => tracing::debug!(configuration = %self.name, "wrote the caBundle"),
                Err(error) if error.is_conflict() || error.is_failed_test() => {
                    tracing::debug!(%error, "looking again");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Contended(self.name.clone()))
    }

    async fn read(&self) -> Result<Configuration, PublishError> {
        let what = &format!("get MutatingWebhookConfiguration {}", self.name);
        let found = call(what, self.api.get_opt(&self.name)).await?;
        let configuration = found.ok_or_else(|| PublishError::Missing(self.name.clone()))?;
        if configuration.webhooks.as_ref().is_none_or(Vec::is_empty) {
            return Err(PublishError::Empty(self.name.clone()));
        }
        Ok(configuration)
    }

    fn odd(&self, error: serde_json::Error) -> PublishError {
        let what = format!("patch MutatingWebhookConfiguration {}", self.name);
        ApiError::Broken { what, source: Box::new(kube::Error::SerdeError(error)) }.into()
    }
}

/// The operations that give each webhook `bundle`; none where all have it. A JSON Patch, since a merge patch would
/// replace the whole list and a PUT of the typed object would drop fields of newer servers. Its `test` operations make
/// the apiserver refuse it where the object changed since it was read.
fn patch_for(configuration: &Configuration, bundle: &str) -> Option<Value> {
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

    fn configuration(bundles: &[Option<&str>]) -> Configuration {
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
    fn only_what_differs_is_written_and_only_to_this_revision() {
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
