//! How the apiserver reaches the webhook: copied from the MutatingWebhookConfiguration into the entries. Pure.

use job_handler_shared::{keys, webhook_address};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};

/// The client configuration of an entry of this name: that of `/validate`, or one of `/warn` derived from it.
pub(crate) fn client_of(entry: &str, validate: &WebhookClientConfig) -> WebhookClientConfig {
    let mut client = validate.clone();
    if entry.ends_with(keys::WARN_WEBHOOK_SUFFIX)
        && let Some(address) = address(&mut client)
    {
        *address = webhook_address::with_endpoint(address, keys::WARN_PATH);
    }
    client
}

/// The URL, or the path behind a Service.
fn address(client: &mut WebhookClientConfig) -> Option<&mut String> {
    let WebhookClientConfig { url, service, .. } = client;
    match service {
        Some(service) => Some(service.path.get_or_insert_default()),
        None => url.as_mut(),
    }
}

/// The client configuration of `/validate`, derived from that of `/mutate`; an error says what is missing.
pub(crate) fn client_config(
    mutating: Option<&MutatingWebhookConfiguration>,
) -> Result<WebhookClientConfig, String> {
    let name = keys::MUTATING_CONFIGURATION;
    let missing = || format!("MutatingWebhookConfiguration {name} is missing: apply manifests/base");
    let webhooks = mutating.ok_or_else(missing)?.webhooks.as_deref().unwrap_or_default();
    let webhook =
        webhooks.iter().find(|webhook| webhook.name == keys::MUTATING_WEBHOOK).ok_or_else(|| {
            format!("MutatingWebhookConfiguration {name} has no webhook {}", keys::MUTATING_WEBHOOK)
        })?;
    let mut client = webhook.client_config.clone();
    if client.ca_bundle.as_ref().is_none_or(|bundle| bundle.0.is_empty()) {
        return Err(format!(
            "MutatingWebhookConfiguration {name} has no caBundle yet: no webhook replica has published its CA"
        ));
    }
    if let Some(service) = &mut client.service {
        service.port = service.port.or(Some(443));
    }
    let address = address(&mut client).filter(|address| webhook_address::secret(address).is_some());
    let address = address.ok_or_else(|| {
        format!(
            "MutatingWebhookConfiguration {name} has no secret in its paths yet: no webhook replica has published one"
        )
    })?;
    *address = webhook_address::with_endpoint(address, keys::VALIDATE_PATH);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_address_is_that_of_mutate_with_another_path() {
        let config = |client: serde_json::Value| {
            let config: MutatingWebhookConfiguration = serde_json::from_value(json!({
                "metadata": {}, "webhooks": [{"name": "stamp.job-handler.io", "admissionReviewVersions": ["v1"],
                    "sideEffects": "None", "clientConfig": client}]}))
            .unwrap();
            client_config(Some(&config))
        };
        let secret = format!("2-1-{}", "0".repeat(64));
        let url = format!("https://127.0.0.1:8443/{secret}/mutate");
        let url = config(json!({"url": url, "caBundle": "YQ=="})).unwrap();
        assert_eq!(url.url.unwrap(), format!("https://127.0.0.1:8443/{secret}/validate"));
        assert_eq!(url.ca_bundle, Some(ByteString(b"a".to_vec())));
        let service = |path: &str| {
            let service = json!({"name": "job-handler", "namespace": "x", "path": path});
            config(json!({"service": service, "caBundle": "YQ=="}))
        };
        let with_secret = service(&format!("/{secret}/mutate")).unwrap().service.unwrap();
        assert_eq!(with_secret.path.unwrap(), format!("/{secret}/validate"));
        // What the webhook would answer with 404 is not copied.
        assert!(service("/mutate").unwrap_err().contains("no secret in its paths yet"));
        assert!(config(json!({"url": "https://a/mutate"})).unwrap_err().contains("no caBundle yet"));
        let validate =
            WebhookClientConfig { url: Some("https://a/validate".into()), ..WebhookClientConfig::default() };
        for (entry, url) in [
            ("warn.ci.jobpolicy.update.limit.job-handler.io", "https://a/validate"),
            ("p.ci.jobpolicy.warn.job-handler.io", "https://a/warn"),
        ] {
            assert_eq!(client_of(entry, &validate).url.unwrap(), url);
        }
        assert!(client_config(None).unwrap_err().contains("manifests/base"));
    }
}
