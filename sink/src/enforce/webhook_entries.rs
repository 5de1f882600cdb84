//! The webhook entries that each policy should have: one for creates, one for updates. Pure. What one policy says never
//! appears in the entries of another.
//!
//! The entry for creates has no matchConditions: to evaluate them the apiserver makes an unstructured copy of each Job
//! (`apiserver/pkg/admission/plugin/cel.newActivation`), a tenth of the cost of a create. The entry for updates gets only
//! those that its matchConditions select.

use std::sync::Arc;

use job_handler_shared::{
    keys, names,
    policy::{parsed::Policy, reference::PolicyKind, set::PolicySet},
};
use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchCondition, RuleWithOperations, ValidatingWebhook, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    enforce::{
        match_conditions::{self, DecidingFields},
        webhook_client::client_of,
    },
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

/// SHA-256 of an entry, or of its client configuration, as JSON.
pub(crate) type EntryDigest = [u8; 32];

/// The two entries of a policy. They depend on no other policy.
#[derive(Clone, Debug)]
pub(crate) struct EntryPair {
    pub(crate) policy: Arc<Policy>,
    /// For creates, and for updates.
    pub(crate) entries: [ValidatingWebhook; 2],
    pub(crate) digests: [EntryDigest; 2],
    /// Size of both as JSON.
    pub(crate) bytes: usize,
    /// The same without the webhook's address and caBundle, which the policy does not choose.
    pub(crate) own_bytes: usize,
}

impl EntryPair {
    fn new(policy: &Arc<Policy>, client: &WebhookClientConfig, own_namespace: &str) -> Self {
        let [creates, updates] = entry_names(policy);
        let conditions = match_conditions::build(&DecidingFields::of(&policy.spec));
        let entries = [
            entry(policy, creates, "CREATE", None, client, own_namespace),
            entry(policy, updates, "UPDATE", Some(conditions), client, own_namespace),
        ];
        let texts = entries.each_ref().map(json);
        let bytes: usize = texts.iter().map(Vec::len).sum();
        let of_clients: usize = entries.iter().map(|entry| json(&entry.client_config).len()).sum();
        Self {
            policy: policy.clone(),
            digests: texts.map(|text| Sha256::digest(text).into()),
            bytes,
            own_bytes: bytes.saturating_sub(of_clients),
            entries,
        }
    }

    pub(crate) fn uid(&self) -> &str {
        &self.policy.reference.uid
    }

    /// Names and digests of both entries.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, EntryDigest)> {
        self.entries.iter().map(|entry| entry.name.as_str()).zip(self.digests)
    }
}

/// The digest of an entry, or of its client configuration.
pub(crate) fn digest(part: &impl Serialize) -> EntryDigest {
    digest_and_size(part).0
}

/// The digest of an entry, or of its client configuration, and the size as JSON.
pub(crate) fn digest_and_size(part: &impl Serialize) -> (EntryDigest, usize) {
    let text = json(part);
    (Sha256::digest(&text).into(), text.len())
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // The types of the API have no keys but strings, so that this does not fail.
    serde_json::to_vec(value).unwrap_or_default()
}

/// The webhook entries of these policies, for the fuzz target and tests of other crates.
pub fn all_entries(
    policies: &PolicySet,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> Vec<ValidatingWebhook> {
    build(policies, client, own_namespace).into_iter().flat_map(|pair| pair.entries).collect()
}

/// The entries of all policies with limits, those of the oldest policy first. `client` is how the apiserver reaches the
/// webhook; `own_namespace` is excluded.
pub(crate) fn build(
    policies: &PolicySet,
    client: &WebhookClientConfig,
    own_namespace: &str,
) -> Vec<EntryPair> {
    let mut limited: Vec<&Arc<Policy>> =
        policies.iter().filter(|policy| has_entries(policy, own_namespace)).collect();
    limited.sort_by(|a, b| (a.created, &a.reference).cmp(&(b.created, &b.reference)));
    limited.into_iter().map(|policy| EntryPair::new(policy, client, own_namespace)).collect()
}

/// Whether the policy needs entries.
pub(crate) fn has_entries(policy: &Policy, own_namespace: &str) -> bool {
    policy.has_limits() && !is_excluded(&policy.reference, own_namespace)
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
        client_config: client_of(&name, client),
        name,
        admission_review_versions: vec!["v1".to_owned()],
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
        object_selector: Some(without_empty_fields(policy.spec.job_selector.clone().unwrap_or_default())),
        match_conditions: conditions,
    }
}

fn namespace_selector(policy: &Policy, own_namespace: &str) -> LabelSelector {
    if let Some(namespace) = &policy.reference.namespace {
        let labels = [(NAMESPACE_NAME.to_owned(), namespace.clone())].into();
        return LabelSelector { match_labels: Some(labels), match_expressions: None };
    }
    let mut selector = without_empty_fields(policy.namespace_selector().cloned().unwrap_or_default());
    let mut excluded: Vec<String> = keys::EXCLUDED_NAMESPACES.iter().map(|ns| (*ns).to_owned()).collect();
    excluded.push(own_namespace.to_owned());
    selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
        key: NAMESPACE_NAME.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(excluded),
    });
    selector
}

/// The apiserver does not store empty fields. With them, an entry would differ from the stored one for ever.
fn without_empty_fields(selector: LabelSelector) -> LabelSelector {
    let LabelSelector { match_labels, match_expressions } = selector;
    let without_empty_values = |mut requirement: LabelSelectorRequirement| {
        requirement.values = requirement.values.filter(|values| !values.is_empty());
        requirement
    };
    let expressions: Vec<_> = match_expressions.into_iter().flatten().map(without_empty_values).collect();
    LabelSelector {
        match_labels: match_labels.filter(|labels| !labels.is_empty()),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    }
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
        let pairs = build(&set, &WebhookClientConfig::default(), "job-handler-system");
        let mut entries: Vec<_> = pairs.into_iter().flat_map(|pair| pair.entries).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
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
    fn the_entries_of_a_policy_do_not_depend_on_other_policies() {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}], "jobSelector": {"matchLabels": {"app": "a"}}});
        let own = namespaced("builds", "ci", limit);
        let other = namespaced(
            "other",
            "ci",
            json!({"limits": [{"name": "l", "maxActiveJobs": 1, "scope": "Group"}],
            "group": {"type": "Labels", "labelKeys": ["repo"]}}),
        );
        let digests = |policies: &[&Arc<Policy>]| {
            let set = PolicySet::new(policies.iter().map(|policy| (*policy).clone()));
            let pairs = build(&set, &WebhookClientConfig::default(), "job-handler-system");
            pairs.into_iter().find(|pair| pair.uid() == "ci-builds").unwrap().digests
        };
        assert_eq!(digests(&[&own]), digests(&[&own, &other]));
    }

    #[test]
    fn entries_have_no_empty_fields() {
        let limits = json!([{"name": "l", "maxActiveJobs": 1}]);
        let requirement = json!({"key": "a", "operator": "Exists", "values": []});
        let policy = cluster(
            "p",
            json!({"limits": limits, "jobSelector": {"matchLabels": {}, "matchExpressions": [requirement]},
                "namespaceSelector": {"matchLabels": {}, "matchExpressions": []}}),
        );
        let pair = build(&PolicySet::new([policy]), &WebhookClientConfig::default(), "ours").remove(0);
        let entry = serde_json::to_value(&pair.entries[0]).unwrap();
        assert_eq!(
            entry["objectSelector"],
            json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]})
        );
        assert_eq!(entry["namespaceSelector"]["matchLabels"], json!(null));
    }

    #[test]
    fn sizes_are_those_of_the_json_and_the_address_is_told_apart() {
        let policy = namespaced("builds", "ci", json!({"limits": [{"name": "l", "maxActiveJobs": 1}]}));
        let pair = |bundle: usize| {
            let ca_bundle = Some(ByteString(vec![b'a'; bundle]));
            let client = WebhookClientConfig { ca_bundle, ..WebhookClientConfig::default() };
            build(&PolicySet::new([policy.clone()]), &client, "job-handler-system").remove(0)
        };
        let (small, large) = (pair(0), pair(3000));
        let json: usize = large.entries.iter().map(|entry| serde_json::to_vec(entry).unwrap().len()).sum();
        assert_eq!(large.bytes, json);
        assert_eq!((large.bytes - small.bytes, large.own_bytes), (8000, small.own_bytes));
        assert_eq!(large.digests, large.entries.each_ref().map(digest));
        assert_ne!(large.digests, small.digests);
    }
}
