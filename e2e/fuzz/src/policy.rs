//! Policies, and the entries that the sink makes of them in its ValidatingWebhookConfigurations.
//!
//! The bytes are JSON documents, each a JobPolicy or a ClusterJobPolicy. What the apiserver accepts as a policy must give
//! entries that it accepts too: a limit whose entry it rejects is not enforced. Here the
//! rules that are known offline take the apiserver's place ([`crate::entry_rules`]); the scenario
//! `hostile::policy_entries` sends the corpus to a real one.

use std::sync::Arc;

use job_handler_shared::{
    keys,
    policy::{
        parsed::Policy,
        set::PolicySet,
        spec::{ClusterJobPolicy, JobPolicy},
    },
};
use job_handler_sink::build_webhook_entries;
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, WebhookClientConfig};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    entry_rules::{broken_rules, is_valid_policy},
    harness::documents,
};

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let (mut policies, mut alone): (Vec<Value>, Vec<ValidatingWebhook>) = Default::default();
    for policy in documents(bytes) {
        // The entries of policies that the apiserver would not store may break rules, but are made without a panic.
        let own = entries(std::slice::from_ref(&policy));
        let is_known = |other: &Value| {
            let uid = |policy: &Value| policy["metadata"]["uid"].clone();
            identity(other) == identity(&policy) || uid(other) == uid(&policy)
        };
        if is_valid_policy(&policy) && !policies.iter().any(is_known) {
            let broken: Vec<String> = own.iter().flat_map(broken_rules).collect();
            assert!(broken.is_empty(), "{broken:#?}\n{policy:#}");
            policies.push(policy);
            alone.extend(own);
        }
    }
    let mut together = entries(&policies);
    let mut names: Vec<&str> = together.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), together.len(), "two entries have one name");
    for entries in [&mut alone, &mut together] {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
    }
    assert_eq!(together, alone, "a policy changes the entries of another");
}

/// The webhook entries of these policies. What is no policy has none.
pub fn entries(policies: &[Value]) -> Vec<ValidatingWebhook> {
    let client = WebhookClientConfig {
        url: Some(format!("https://127.0.0.1:8443{}", keys::VALIDATE_PATH)),
        ..WebhookClientConfig::default()
    };
    let set = PolicySet::new(policies.iter().filter_map(parse));
    build_webhook_entries(&set, &client, keys::NAMESPACE)
}

fn parse(policy: &Value) -> Option<Arc<Policy>> {
    let parsed = match policy["kind"].as_str()? {
        "JobPolicy" => Policy::namespaced(&JobPolicy::deserialize(policy).ok()?),
        "ClusterJobPolicy" => Policy::cluster(&ClusterJobPolicy::deserialize(policy).ok()?),
        _ => return None,
    };
    parsed.ok().map(Arc::new)
}

/// By what the apiserver tells policies apart.
fn identity(policy: &Value) -> [&Value; 3] {
    [&policy["kind"], &policy["metadata"]["namespace"], &policy["metadata"]["name"]]
}
