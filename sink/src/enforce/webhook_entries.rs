//! The webhook entries that each policy should have: one for creates, one for updates. Pure.
//!
//! The entry for creates has no matchConditions: to evaluate them the apiserver makes an unstructured copy of each Job
//! (`apiserver/pkg/admission/plugin/cel.newActivation`), a tenth of the cost of a create. The entry for updates gets only
//! those that its matchConditions select.

use job_handler_shared::{
    keys, names,
    policy::{parsed::Policy, reference::PolicyKind, set::PolicySet},
};
use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchCondition, MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhook,
        WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use crate::{
    enforce::match_conditions::{self, DecidingFields},
    model::policy_entry::is_excluded,
};

/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Part of the names of entries for updates.
const UPDATE: &str = "update";
/// Seconds that the apiserver waits for a response.
const TIMEOUT_SECONDS: i32 = 10;
/// The same in mode Warn, where a missing response has no effect.
const WARN_TIMEOUT_SECONDS: i32 = 2;

/// The entries of all policies. `client` is how the apiserver reaches the webhook; `own_namespace` is excluded.
pub fn build(
    policies: &PolicySet,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> Vec<ValidatingWebhook> {
    let mut entries: Vec<ValidatingWebhook> = policies
        .iter()
        .filter(|policy| policy.has_limits() && !is_excluded(policy, own_namespace))
        .flat_map(|policy| {
            // Policies in mode Warn have no influence on enforced ones.
            let near = policies.iter().filter(|other| other.enforced() || !policy.enforced());
            let deciding = DecidingFields::of(policy, near.map(AsRef::as_ref));
            let [creates, updates] = entry_names(policy);
            let (create, update) = ("CREATE", "UPDATE");
            [
                entry(policy, creates, create, None, client, own_namespace),
                entry(
                    policy,
                    updates,
                    update,
                    Some(match_conditions::build(&deciding)),
                    client,
                    own_namespace,
                ),
            ]
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

fn entry(
    policy: &Policy,
    name: String,
    operation: &str,
    conditions: Option<Vec<MatchCondition>>,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> ValidatingWebhook {
    let enforced = policy.enforced();
    // Every default is explicit, so that the stored entry compares equal.
    ValidatingWebhook {
        name,
        admission_review_versions: vec!["v1".to_owned()],
        client_config: if enforced { client.clone() } else { warn_client_config(client) },
        // A policy in mode Warn never blocks a Job.
        failure_policy: Some(if enforced { "Fail" } else { "Ignore" }.to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        side_effects: "NoneOnDryRun".to_owned(),
        timeout_seconds: Some(if enforced { TIMEOUT_SECONDS } else { WARN_TIMEOUT_SECONDS }),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec!["batch".to_owned()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec![operation.to_owned()]),
            resources: Some(vec!["jobs".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        namespace_selector: Some(namespace_selector(policy, own_namespace)),
        object_selector: Some(policy.spec.job_selector.clone().unwrap_or_default()),
        match_conditions: conditions,
    }
}

fn namespace_selector(policy: &Policy, own_namespace: &str) -> LabelSelector {
    if let Some(namespace) = &policy.reference.namespace {
        let labels = [(NAMESPACE_NAME.to_owned(), namespace.clone())].into();
        return LabelSelector { match_labels: Some(labels), match_expressions: None };
    }
    let mut selector = policy.namespace_selector().cloned().unwrap_or_default();
    let mut excluded: Vec<String> = keys::EXCLUDED_NAMESPACES.iter().map(|ns| (*ns).to_owned()).collect();
    excluded.push(own_namespace.to_owned());
    selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
        key: NAMESPACE_NAME.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(excluded),
    });
    selector
}

/// Names of the entries for creates and updates: `<name>.<namespace>.jobpolicy.limit.job-handler.io` or
/// `<name>.clusterjobpolicy.limit.…`, and the same with `.update` before `.limit`. They appear in refusals. They are
/// unique because a namespace has no dots; names that would be too long use the uid.
pub(crate) fn entry_names(policy: &Policy) -> [String; 2] {
    let reference = &policy.reference;
    let suffix = if policy.enforced() { keys::LIMIT_WEBHOOK_SUFFIX } else { keys::WARN_WEBHOOK_SUFFIX };
    let owner = match (reference.kind, &reference.namespace) {
        (PolicyKind::JobPolicy, Some(namespace)) => format!("{}.{namespace}.jobpolicy", reference.name),
        _ => format!("{}.clusterjobpolicy", reference.name),
    };
    [String::new(), format!("{UPDATE}.")].map(|of| {
        let name = format!("{owner}.{of}{suffix}");
        if name.len() <= names::OBJECT_NAME_MAX { name } else { format!("{}.{of}{suffix}", reference.uid) }
    })
}

/// The client configuration of `/warn`, derived from that of `/validate`.
fn warn_client_config(validate: &WebhookClientConfig) -> WebhookClientConfig {
    let mut client = validate.clone();
    if let Some(service) = &mut client.service {
        service.path = Some(keys::WARN_PATH.to_owned());
    }
    if let Some(url) = &mut client.url {
        let base = url.strip_suffix(keys::VALIDATE_PATH).unwrap_or(url);
        *url = format!("{base}{}", keys::WARN_PATH);
    }
    client
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
        service.path = Some(keys::VALIDATE_PATH.to_owned());
        service.port = service.port.or(Some(443));
    }
    if let Some(url) = &mut client.url {
        let base = url.strip_suffix(keys::MUTATE_PATH).unwrap_or(url.trim_end_matches('/'));
        *url = format!("{base}{}", keys::VALIDATE_PATH);
    }
    Ok(client)
}

/// Names of the entries that were last seen or written correctly, are still wanted, and are now missing or different:
/// someone else changed them.
pub(crate) fn tampered(
    last_correct: &[ValidatingWebhook],
    wanted: &[ValidatingWebhook],
    current: &[ValidatingWebhook],
) -> Vec<String> {
    let changed = wanted.iter().filter(|entry| last_correct.contains(entry) && !current.contains(entry));
    changed.map(|entry| entry.name.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use job_handler_shared::testing::policies::{cluster, job_policy};
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    pub(crate) fn namespaced(name: &str, namespace: &str, spec: serde_json::Value) -> Arc<Policy> {
        let uid = format!("{namespace}-{name}");
        job_policy(json!({"name": name, "namespace": namespace, "uid": uid}), spec)
    }

    #[test]
    fn creates_and_updates_have_entries_of_their_own_and_warn_entries_never_block() {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let warn = json!({"mode": "Warn", "limits": [{"name": "l", "maxActiveJobs": 1}]});
        let set = PolicySet::new([
            namespaced("builds", "ci", limit.clone()),
            namespaced("warned", "ci", warn),
            namespaced("plain", "ci", json!({})),
            namespaced("system", "kube-system", limit.clone()),
            namespaced("ours", "job-handler-system", limit.clone()),
            cluster(
                "all",
                json!({"limits": [{"name": "l", "maxActiveJobs": 1}],
                "namespaceSelector": {"matchLabels": {"team": "a"}}}),
            ),
        ]);
        let entries = build(&set, &WebhookClientConfig::default(), "job-handler-system");
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "all.clusterjobpolicy.limit.job-handler.io",
                "all.clusterjobpolicy.update.limit.job-handler.io",
                "builds.ci.jobpolicy.limit.job-handler.io",
                "builds.ci.jobpolicy.update.limit.job-handler.io",
                "warned.ci.jobpolicy.update.warn.job-handler.io",
                "warned.ci.jobpolicy.warn.job-handler.io",
            ]
        );
        let fails: Vec<_> =
            entries.iter().map(|e| (e.failure_policy.as_deref(), e.timeout_seconds)).collect();
        let (enforced, warned) = ((Some("Fail"), Some(10)), (Some("Ignore"), Some(2)));
        assert_eq!(fails[2..], [enforced, enforced, warned, warned]);
        for entry in &entries {
            let operations = entry.rules.as_ref().unwrap()[0].operations.clone().unwrap();
            let (operation, conditions) =
                if entry.name.contains(".update.") { ("UPDATE", 2) } else { ("CREATE", 0) };
            assert_eq!(operations, [operation], "{}", entry.name);
            assert_eq!(entry.match_conditions.iter().flatten().count(), conditions, "{}", entry.name);
        }
        let selector = serde_json::to_value(&entries[0].namespace_selector).unwrap();
        assert_eq!(selector["matchLabels"], json!({"team": "a"}));
        assert_eq!(selector["matchExpressions"][0]["values"], json!(["kube-system", "job-handler-system"]));
        let selector = serde_json::to_value(&entries[2].namespace_selector).unwrap();
        assert_eq!(selector["matchLabels"], json!({"kubernetes.io/metadata.name": "ci"}));
    }

    #[test]
    fn an_entry_is_tampered_if_it_was_correct_is_still_wanted_and_differs() {
        let entry = |name: &str, timeout| ValidatingWebhook {
            name: name.into(),
            timeout_seconds: Some(timeout),
            ..ValidatingWebhook::default()
        };
        let right = [entry("a", 10), entry("b", 10)];
        let named = |wanted: &[_], current: &[_]| tampered(&right, wanted, current).join(" ");
        assert_eq!(named(&right, &[]), "a b", "deleted");
        assert_eq!(named(&right, &[entry("a", 10), entry("b", 1)]), "b", "edited");
        assert_eq!(named(&right, &[entry("a", 10), entry("b", 10), entry("c", 10)]), "", "an extra entry");
        assert_eq!(named(&[entry("a", 10), entry("b", 9)], &right), "", "we want another entry now");
        assert_eq!(tampered(&[], &right, &[]), Vec::<String>::new(), "a new leader has seen no entries yet");
    }

    #[test]
    fn the_address_is_that_of_mutate_with_another_path() {
        let config = |client: serde_json::Value| {
            let config: MutatingWebhookConfiguration = serde_json::from_value(json!({
                "metadata": {}, "webhooks": [{"name": "stamp.job-handler.io", "admissionReviewVersions": ["v1"],
                    "sideEffects": "None", "clientConfig": client}]}))
            .unwrap();
            client_config(Some(&config))
        };
        let url = config(json!({"url": "https://127.0.0.1:8443/mutate", "caBundle": "YQ=="})).unwrap();
        assert_eq!(url.url.unwrap(), "https://127.0.0.1:8443/validate");
        assert_eq!(url.ca_bundle, Some(ByteString(b"a".to_vec())));
        let service = json!({"service": {"name": "job-handler", "namespace": "x", "path": "/mutate"}, "caBundle": "YQ=="});
        assert_eq!(config(service).unwrap().service.unwrap().path.unwrap(), "/validate");
        assert!(config(json!({"url": "https://a/mutate"})).unwrap_err().contains("no caBundle yet"));
        let validate =
            WebhookClientConfig { url: Some("https://a/validate".into()), ..WebhookClientConfig::default() };
        assert_eq!(warn_client_config(&validate).url.unwrap(), "https://a/warn");
        assert!(client_config(None).unwrap_err().contains("manifests/base"));
    }
}
