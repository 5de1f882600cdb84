//! The corpus of fuzz target `policy`, sent to a real apiserver: what it accepts as policies gives webhook entries that it
//! accepts. Everything is a dry run.

use job_handler_fuzz::{corpus, documents, entry_rules::broken_rules, policy::entries};
use job_handler_shared::policy::spec::{ClusterJobPolicy, JobPolicy};
use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use serde_json::Value;

use crate::fixtures::{Fixture, scenario};

#[test]
fn entries_of_accepted_policies_are_accepted_and_the_rules_known_offline_agree() {
    scenario(|fixture| async move {
        for (file, bytes) in corpus("policy") {
            let mut accepted = Vec::new();
            for mut policy in documents(&bytes) {
                if policy["kind"] == "JobPolicy"
                    && let Some(metadata) = policy["metadata"].as_object_mut()
                {
                    metadata.insert("namespace".to_owned(), "default".into());
                }
                let own = entries(std::slice::from_ref(&policy));
                let broken: Vec<String> = own.iter().flat_map(broken_rules).collect();
                let stored = store_entries(fixture, own).await;
                assert_eq!(broken.is_empty(), stored.is_ok(), "{file}: {broken:?} {stored:?}");
                // The second policy of a name would be an update of the first one.
                let is_known = |other: &Value| {
                    let name = |policy: &Value| policy["metadata"]["name"].clone();
                    other["kind"] == policy["kind"] && name(other) == name(&policy)
                };
                if !accepted.iter().any(is_known) && accepts(fixture, &policy).await {
                    accepted.push(policy);
                }
            }
            let stored = store_entries(fixture, entries(&accepted)).await;
            assert_eq!(stored, Ok(()), "{file}: entries of {} accepted policies", accepted.len());
        }
    });
}

/// Whether the apiserver would store the policy.
async fn accepts(fixture: &Fixture, policy: &Value) -> bool {
    let Some(name) = policy["metadata"]["name"].as_str().filter(|name| !name.is_empty()) else {
        return false;
    };
    let parameters = PatchParams { dry_run: true, ..PatchParams::apply("scenario").validation_strict() };
    let mut policy = policy.clone();
    // Server-side apply rejects a uid of no object.
    policy["metadata"].as_object_mut().unwrap().remove("uid");
    let stored = if policy["kind"] == "JobPolicy" {
        let api: Api<JobPolicy> = Api::namespaced(fixture.client(), "default");
        api.patch(name, &parameters, &Patch::Apply(&policy)).await.map(drop)
    } else {
        let api: Api<ClusterJobPolicy> = Api::all(fixture.client());
        api.patch(name, &parameters, &Patch::Apply(&policy)).await.map(drop)
    };
    is_stored(stored).is_ok()
}

/// Whether the apiserver would store a configuration with these entries; the error is its message.
async fn store_entries(fixture: &Fixture, entries: Vec<ValidatingWebhook>) -> Result<(), String> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
    let configuration = ValidatingWebhookConfiguration {
        metadata: ObjectMeta { name: Some("corpus-of-policies".to_owned()), ..ObjectMeta::default() },
        webhooks: Some(entries),
    };
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    is_stored(api.create(&parameters, &configuration).await.map(drop))
}

fn is_stored(result: kube::Result<()>) -> Result<(), String> {
    result.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => panic!("{other}"),
    })
}
