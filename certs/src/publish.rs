//! Publishes the CA as the `caBundle` of the MutatingWebhookConfiguration, and the secret in the paths of reviews. Writes
//! are guarded by resourceVersion, and read back. The sink copies both into the configurations of the limits.

use std::collections::BTreeSet;

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    names, webhook_address,
};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::review_path::{PathKey, PathNumbers};

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

/// Reads and writes the `caBundle` and the paths of one MutatingWebhookConfiguration.
#[derive(Clone)]
pub struct Publisher {
    pub(crate) api: Api<MutatingWebhookConfiguration>,
    pub(crate) name: String,
    limits: Api<ValidatingWebhookConfiguration>,
}

/// What the path of reviews should be.
#[derive(Clone, Debug)]
pub(crate) struct PathPlan {
    /// Keys of accepted secrets; new ones are created with the first.
    pub(crate) keys: Vec<PathKey>,
    /// Whether to replace a valid secret.
    pub(crate) replace: bool,
    /// Seconds since 1970.
    pub(crate) now: u64,
}

/// What was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Whether anything was written.
    pub(crate) wrote: bool,
    /// The secret that is published.
    pub(crate) path: Option<PathNumbers>,
    /// Whether the secret was not replaced because the configurations of the limits do not have it yet.
    pub(crate) postponed: bool,
    /// Whether a configuration of the limits has a secret of another key than the current one.
    pub(crate) older_key_in_use: bool,
}

/// The secret to publish.
struct PathChoice {
    secret: String,
    numbers: PathNumbers,
    /// Whether a valid secret is published until then.
    is_valid: bool,
    postponed: bool,
    older_key_in_use: bool,
}

impl Publisher {
    /// Reads and writes `configuration` through `client`.
    pub fn new(client: Client, configuration: &str) -> Self {
        Self { api: Api::all(client.clone()), name: configuration.to_owned(), limits: Api::all(client) }
    }

    /// Whether every webhook of the configuration has `bundle`.
    ///
    /// # Errors
    /// If the configuration does not exist or cannot be read.
    pub async fn is_published(&self, bundle: &str) -> Result<bool, PublishError> {
        Ok(patch_for(&self.read().await?, bundle, None).is_none())
    }

    /// Writes `bundle` into webhooks that have another one, and reads it back. Calls `on_difference` before the first
    /// write. Returns whether it wrote.
    ///
    /// # Errors
    /// If the configuration does not exist, cannot be written, or changes during each attempt.
    pub async fn publish(&self, bundle: &str, on_difference: impl Fn() + Sync) -> Result<bool, PublishError> {
        Ok(self.publish_with_path(bundle, None, on_difference).await?.wrote)
    }

    /// The same with a secret in the paths. Replacing a valid secret by another does not count as a difference.
    pub(crate) async fn publish_with_path(
        &self,
        bundle: &str,
        mut plan: Option<PathPlan>,
        on_difference: impl Fn() + Sync,
    ) -> Result<Publication, PublishError> {
        for attempt in 0..MAX_ATTEMPTS {
            // A watch may be behind, so this reads from the apiserver.
            let configuration = self.read().await?;
            let choice = match &plan {
                Some(plan) => Some(self.choose_path(plan, &configuration).await?),
                None => None,
            };
            let secret = choice.as_ref().map(|choice| choice.secret.as_str());
            let Some(patch) = patch_for(&configuration, bundle, secret) else {
                return Ok(Publication {
                    wrote: attempt > 0,
                    path: choice.as_ref().map(|choice| choice.numbers),
                    postponed: choice.as_ref().is_some_and(|choice| choice.postponed),
                    older_key_in_use: choice.is_some_and(|choice| choice.older_key_in_use),
                });
            };
            let is_replacement = choice.is_some_and(|choice| choice.is_valid)
                && patch_for(&configuration, bundle, None).is_none();
            if attempt == 0 && !is_replacement {
                on_difference();
            }
            let patch: Patch<Value> =
                Patch::Json(serde_json::from_value(patch).map_err(|e| self.invalid_patch(e))?);
            let what = &format!("patch MutatingWebhookConfiguration {}", self.name);
            match call(what, self.api.patch(&self.name, &PatchParams::default(), &patch)).await {
                Ok(_) => tracing::debug!(configuration = %self.name, "wrote caBundle and paths"),
                Err(error) if error.is_conflict() || error.is_failed_test() => {
                    tracing::debug!(%error, "the configuration changed; reading it again");
                }
                Err(error) => return Err(error.into()),
            }
            // Written now, or by another replica.
            if let Some(plan) = &mut plan {
                plan.replace = false;
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

    /// The published secret, or a new one. A valid secret is replaced only when the configurations of the limits have it:
    /// then only two secrets are in use, and a sink that is away makes no call fail. An apiserver that does not know yet
    /// what the sink wrote last uses a third, which `ReviewPaths` still accepts.
    async fn choose_path(
        &self,
        plan: &PathPlan,
        configuration: &MutatingWebhookConfiguration,
    ) -> Result<PathChoice, PublishError> {
        let published = published_path(plan, configuration);
        let keep = |(secret, numbers): (&str, PathNumbers), postponed, older_key_in_use| PathChoice {
            secret: secret.to_owned(),
            numbers,
            is_valid: true,
            postponed,
            older_key_in_use,
        };
        // As long as an older key is accepted, each publication looks whether it still has to be.
        let older_keys = plan.keys.get(1..).unwrap_or_default();
        if let Some(published) = published.filter(|_| !plan.replace && older_keys.is_empty()) {
            return Ok(keep(published, false, false));
        }
        let secrets = self.secrets_of_limits().await?;
        let older_key_in_use = !numbers_of(&secrets, older_keys).is_empty();
        let mut in_use = numbers_of(&secrets, &plan.keys);
        if let Some(published) = published {
            let postponed = plan.replace && in_use.iter().any(|used| *used != published.1);
            if postponed || !plan.replace {
                return Ok(keep(published, postponed, older_key_in_use));
            }
            in_use.push(published.1);
        }
        let after = in_use.iter().map(|used| used.number + 1).max().unwrap_or(0);
        let number = plan.now.max(after);
        let oldest = in_use.iter().map(|used| used.number).min().unwrap_or(number);
        let numbers = PathNumbers { number, oldest };
        let secret = plan.keys.first().map(|key| key.secret(numbers)).unwrap_or_default();
        Ok(PathChoice { secret, numbers, is_valid: published.is_some(), postponed: false, older_key_in_use })
    }

    /// The secrets in the configurations of the limits. They are read one by one: together they have up to 32 MiB. A list
    /// would also show the URLs of other programs' webhooks, and the secrets in them.
    async fn secrets_of_limits(&self) -> Result<BTreeSet<String>, PublishError> {
        let mut secrets = BTreeSet::new();
        for name in (0..keys::LIMITS_CONFIGURATIONS).map(names::limits_configuration) {
            let what = format!("get ValidatingWebhookConfiguration {name}");
            let Some(configuration) = call(&what, self.limits.get_opt(&name)).await? else { continue };
            let entries = configuration.webhooks.iter().flatten();
            let found = entries.filter_map(|entry| webhook_address::secret(address(&entry.client_config)));
            secrets.extend(found.map(str::to_owned));
        }
        Ok(secrets)
    }

    fn invalid_patch(&self, error: serde_json::Error) -> PublishError {
        let what = format!("patch MutatingWebhookConfiguration {}", self.name);
        ApiError::Broken { what, source: Box::new(kube::Error::SerdeError(error)) }.into()
    }
}

/// The numbers of those secrets that one of the keys created.
fn numbers_of(secrets: &BTreeSet<String>, keys: &[PathKey]) -> Vec<PathNumbers> {
    secrets.iter().filter_map(|secret| keys.iter().find_map(|key| key.read(secret))).collect()
}

/// The secret that all webhooks of the configuration have, if it is of the current key.
fn published_path<'a>(
    plan: &PathPlan,
    configuration: &'a MutatingWebhookConfiguration,
) -> Option<(&'a str, PathNumbers)> {
    let mut webhooks = configuration.webhooks.iter().flatten();
    let secret = webhook_address::secret(address(&webhooks.next()?.client_config))?;
    let same =
        webhooks.all(|webhook| webhook_address::secret(address(&webhook.client_config)) == Some(secret));
    let numbers = plan.keys.first()?.read(secret)?;
    same.then_some((secret, numbers))
}

/// The URL, or the path behind a Service.
fn address(client: &WebhookClientConfig) -> &str {
    let path = client.service.as_ref().and_then(|service| service.path.as_deref());
    client.url.as_deref().or(path).unwrap_or_default()
}

/// A JSON Patch that sets `bundle`, and the path with `secret`, in each webhook; none if all have them. A merge patch would
/// replace the full list, and a PUT of the typed object would drop fields of newer servers. The `test` operation makes the
/// apiserver reject the patch if the object has changed.
fn patch_for(
    configuration: &MutatingWebhookConfiguration,
    bundle: &str,
    secret: Option<&str>,
) -> Option<Value> {
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let mut operations = Vec::new();
    for (n, webhook) in configuration.webhooks.iter().flatten().enumerate() {
        let client = &webhook.client_config;
        if client.ca_bundle.as_ref() != Some(&wanted) {
            let path = format!("/webhooks/{n}/clientConfig/caBundle");
            operations.push(json!({"op": "add", "path": path, "value": wanted}));
        }
        let Some(secret) = secret else { continue };
        let wanted = webhook_address::with_secret(address(client), secret, keys::MUTATE_PATH);
        if address(client) != wanted {
            let field = if client.url.is_some() { "url" } else { "service/path" };
            let path = format!("/webhooks/{n}/clientConfig/{field}");
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
mod tests;
