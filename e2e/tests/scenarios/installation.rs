//! The installation: certificates, webhook configurations and rights.

use std::{collections::BTreeSet, fs};

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::Secret,
};
use kube::Api;
use serde_json::{Value, json};

use super::fixtures::{job, scenario};

#[test]
fn the_ca_is_in_a_secret_and_in_both_configurations() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("ca").await.unwrap();
        fixture.apply_policy(&ns, "few", json!({"limits": [{"name": "few", "maxActiveJobs": 3}]})).await;
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), "job-handler-system");
        let ca = secrets.get("job-handler-ca").await.unwrap().data.unwrap()["ca.crt"].clone();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(fixture.client());
        let mutating = mutating.get("job-handler").await.unwrap().webhooks.unwrap();
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
        let validating = validating.get("job-handler-limits").await.unwrap().webhooks.unwrap();
        assert!(!validating.is_empty());
        for bundle in mutating
            .iter()
            .map(|w| &w.client_config.ca_bundle)
            .chain(validating.iter().map(|w| &w.client_config.ca_bundle))
        {
            assert_eq!(bundle.as_ref(), Some(&ca));
        }
        for webhook in validating {
            assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
            assert_eq!((webhook.side_effects.as_str(), webhook.timeout_seconds), ("NoneOnDryRun", Some(10)));
            assert!(webhook.client_config.url.unwrap().ends_with("/validate"));
        }
    });
}

#[test]
fn a_webhook_entry_that_was_changed_by_hand_is_repaired() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("repaired").await.unwrap();
        fixture.apply_policy(&ns, "few", json!({"limits": [{"name": "few", "maxActiveJobs": 0}]})).await;
        let uid = fixture.policies(&ns).get("few").await.unwrap().metadata.uid.unwrap();
        let api: Api<ValidatingWebhookConfiguration> = Api::all(fixture.client());
        let entry_of_policy = |configuration: &ValidatingWebhookConfiguration| {
            configuration.webhooks.iter().flatten().position(|w| {
                w.namespace_selector.as_ref().is_some_and(|s| format!("{s:?}").contains(ns.name()))
                    || w.name.contains(&uid)
            })
        };
        let index =
            entry_of_policy(&api.get("job-handler-limits").await.unwrap()).expect("an entry for the policy");
        let broken =
            json!([{"op": "replace", "path": format!("/webhooks/{index}/failurePolicy"), "value": "Ignore"}]);
        let patch: kube::api::Patch<()> = kube::api::Patch::Json(serde_json::from_value(broken).unwrap());
        api.patch("job-handler-limits", &Default::default(), &patch).await.unwrap();
        fixture
            .wait("the entry to be repaired", || async {
                let now = api.get("job-handler-limits").await.unwrap();
                let entry =
                    entry_of_policy(&now).and_then(|i| now.webhooks.unwrap()[i].failure_policy.clone());
                if entry.as_deref() == Some("Fail") { Ok(()) } else { Err(format!("{entry:?}")) }
            })
            .await;
    });
}

#[test]
fn kubectl_explain_says_what_a_cleanup_policy_does() {
    scenario(|fixture| async move {
        let field = "jobpolicy.spec.cleanup.succeededPolicy";
        let text = fixture.cluster.kubectl(&["explain", field]).await.unwrap();
        // Its lines are wrapped.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let meaning = "`\"AfterHarvest\"` deletes the Job, with its pods, as soon as its result is stored.";
        assert!(text.contains(meaning), "{text}");
    });
}

#[test]
fn the_pair_uses_only_its_own_rights_and_is_never_forbidden() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("rights").await.unwrap();
        fixture
            .apply_policy(
                &ns,
                "all",
                json!({"results": {}, "limits": [{"name": "few", "maxActiveJobs": 1}],
            "cleanup": {"succeededPolicy": "AfterHarvest"}}),
            )
            .await;
        fixture.create(&ns, &job("a", &[], &[("run", "200ms")])).await.unwrap();
        fixture.wait_job_deleted(&ns, "a").await;
        let Ok(path) = fixture.cluster.audit_log() else {
            eprintln!("not checked: the audit log of an existing cluster is not available");
            return;
        };
        let log = fs::read_to_string(path).unwrap();
        let mut users = BTreeSet::new();
        for line in log.lines() {
            let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
            let agent = entry["userAgent"].as_str().unwrap_or_default();
            if !agent.starts_with("job-handler-webhook/") && !agent.starts_with("job-handler-sink/") {
                continue;
            }
            users.insert((
                agent.split('/').next().unwrap().to_owned(),
                entry["user"]["username"].as_str().unwrap().to_owned(),
            ));
            // A quota or a terminating namespace also causes a 403; the authorizer's audit annotation shows a missing
            // right.
            let decision = &entry["annotations"]["authorization.k8s.io/decision"];
            assert_ne!(decision, "forbid", "{line}");
        }
        let account = "system:serviceaccount:job-handler-system:";
        let expected = BTreeSet::from(
            ["job-handler-webhook", "job-handler-sink"].map(|p| (p.to_owned(), format!("{account}{p}"))),
        );
        assert_eq!(users, expected);
    });
}

#[test]
fn our_own_namespace_and_kube_system_are_excluded() {
    scenario(|fixture| async move {
        for ns in ["kube-system", "job-handler-system"] {
            let mut job = job("untouched", &[("job-handler/enabled", "true")], &[("run", "200ms")]);
            job["spec"]["template"]["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
            job["spec"]["template"]["spec"]["containers"][0]["securityContext"] =
                json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
            let created = fixture.create(ns, &job).await.unwrap();
            assert_eq!(created.metadata.annotations, None, "{ns}");
            fixture.jobs(ns).delete("untouched", &kube::api::DeleteParams::background()).await.unwrap();
        }
    });
}
