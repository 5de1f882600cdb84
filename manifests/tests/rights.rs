//! Who may do what: least privilege, as a table.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use std::collections::{BTreeMap, BTreeSet};

use files::{documents, folder, object};
use job_handler_shared::{keys, process::admin::METRICS_PATH};
use k8s_openapi::api::{
    core::v1::ServiceAccount,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding},
};

const POLICIES: &str = "job-handler.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

/// `verb group/resource`, with ` name` where the rule is for one object only.
fn rights(rules: Option<Vec<PolicyRule>>) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for rule in rules.unwrap() {
        assert_eq!(rule.non_resource_urls, None);
        let names = match rule.resource_names {
            Some(names) => names.into_iter().map(|name| format!(" {name}")).collect(),
            None => vec![String::new()],
        };
        for (group, resource) in rule
            .api_groups
            .iter()
            .flatten()
            .flat_map(|g| rule.resources.iter().flatten().map(move |r| (g, r)))
        {
            for verb in &rule.verbs {
                for name in &names {
                    rights.insert(format!("{verb} {group}/{resource}{name}"));
                }
            }
        }
    }
    rights
}

fn table(lines: &[(&str, &str, &str, &str)]) -> BTreeSet<String> {
    lines
        .iter()
        .flat_map(|(group, resource, name, verbs)| {
            let name = if name.is_empty() { String::new() } else { format!(" {name}") };
            verbs.split(' ').map(move |verb| format!("{verb} {group}/{resource}{name}"))
        })
        .collect()
}

fn cluster(program: &str) -> BTreeSet<String> {
    let role: ClusterRole =
        object(&format!("base/rbac-{program}.yaml"), "ClusterRole", &format!("job-handler-{program}"));
    rights(role.rules)
}

fn own(program: &str) -> BTreeSet<String> {
    let role: Role = object(&format!("base/rbac-{program}.yaml"), "Role", &format!("job-handler-{program}"));
    rights(role.rules)
}

#[test]
fn the_webhook_may_read_policies_namespaces_and_jobs_and_manage_its_certificates_and_paths() {
    assert_eq!(
        cluster("webhook"),
        table(&[
            (POLICIES, "clusterjobpolicies", "", "list watch"),
            (POLICIES, "jobpolicies", "", "list watch"),
            ("", "namespaces", "", "list watch"),
            ("batch", "jobs", "", "get list watch"),
            (
                ADMISSION,
                "mutatingwebhookconfigurations",
                keys::MUTATING_CONFIGURATION,
                "get list watch patch"
            ),
            (ADMISSION, "validatingwebhookconfigurations", "", "list"),
        ])
    );
    assert_eq!(
        own("webhook"),
        table(&[
            ("", "secrets", keys::CA_SECRET, "get list watch"),
            ("", "secrets", "", "create"),
            (POLICIES, "jobledgers", "", "get list watch create update"),
            ("coordination.k8s.io", "leases", "", "create patch delete"),
        ])
    );
}

#[test]
fn the_sink_may_harvest_prune_publish_events_and_write_the_entries_of_limits() {
    assert_eq!(
        cluster("sink"),
        table(&[
            ("batch", "jobs", "", "get list watch patch delete"),
            ("", "pods", "", "list watch"),
            ("", "pods/log", "", "get"),
            ("", "configmaps", "", "get list watch create update patch delete"),
            ("events.k8s.io", "events", "", "create patch"),
            (POLICIES, "clusterjobpolicies", "", "list watch create"),
            (POLICIES, "jobpolicies", "", "list watch"),
            (POLICIES, "clusterjobpolicies/status", "", "patch"),
            (POLICIES, "jobpolicies/status", "", "patch"),
            ("", "namespaces", "", "list watch"),
            (ADMISSION, "validatingwebhookconfigurations", "", "create"),
            (
                ADMISSION,
                "validatingwebhookconfigurations",
                keys::LIMITS_CONFIGURATION,
                "get list watch update"
            ),
            (ADMISSION, "mutatingwebhookconfigurations", keys::MUTATING_CONFIGURATION, "get list watch"),
        ])
    );
    assert_eq!(
        own("sink"),
        table(&[
            (POLICIES, "jobledgers", "", "get list watch patch delete"),
            ("coordination.k8s.io", "leases", "", "get list watch create update"),
            ("", "secrets", keys::SINK_CONFIGURATION, "get"),
        ])
    );
}

/// Only the overlay grants these rights.
#[test]
fn secrets_of_all_namespaces_are_opted_into() {
    let path = "overlays/secrets/rbac.yaml";
    let role: ClusterRole = object(path, "ClusterRole", "job-handler-sink-secrets");
    assert_eq!(
        rights(role.rules),
        table(&[("", "secrets", "", "get list watch create update patch delete")])
    );
    let binding: ClusterRoleBinding = object(path, "ClusterRoleBinding", "job-handler-sink-secrets");
    assert_eq!(
        (binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()),
        ("ClusterRole", "job-handler-sink-secrets")
    );
    let subjects = binding.subjects.unwrap();
    let [subject] = subjects.as_slice() else { panic!("{subjects:?}") };
    assert_eq!((subject.name.as_str(), subject.namespace.as_deref()), (keys::APP, Some(keys::NAMESPACE)));
    assert_eq!(documents(path).len(), 2);
    for kustomization in ["base/kustomization.yaml", "overlays/local/kustomization.yaml"] {
        let resources = documents(kustomization)[0]["resources"].to_string();
        assert!(!resources.contains("secrets"), "{kustomization}: {resources}");
    }
}

#[test]
fn metrics_with_authentication_need_two_reviews() {
    let path = "overlays/metrics-auth/rbac.yaml";
    let role: ClusterRole = object(path, "ClusterRole", "job-handler-metrics-auth");
    assert_eq!(
        rights(role.rules),
        table(&[
            ("authentication.k8s.io", "tokenreviews", "", "create"),
            ("authorization.k8s.io", "subjectaccessreviews", "", "create"),
        ])
    );
    let binding: ClusterRoleBinding = object(path, "ClusterRoleBinding", "job-handler-metrics-auth");
    let subjects = binding.subjects.unwrap();
    let [subject] = subjects.as_slice() else { panic!("{subjects:?}") };
    assert_eq!((subject.name.as_str(), subject.namespace.as_deref()), (keys::APP, Some(keys::NAMESPACE)));
    let reader: ClusterRole = object(path, "ClusterRole", "job-handler-metrics-reader");
    let [rule] = reader.rules.unwrap().try_into().expect("one rule");
    assert_eq!(rule.non_resource_urls.unwrap(), [METRICS_PATH]);
    assert_eq!(rule.verbs, ["get"]);
}

#[test]
fn no_wildcards_no_escalation_and_no_secrets_of_others() {
    for (path, document) in folder("base").into_iter().chain(folder("overlays/local")) {
        let kind = document["kind"].as_str().unwrap();
        if !["Role", "ClusterRole"].contains(&kind) {
            continue;
        }
        for rule in document["rules"].as_array().unwrap() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{path}: {text}");
            for verb in ["escalate", "bind", "impersonate"] {
                assert!(!text.contains(&format!("\"{verb}\"")), "{path}: {text}");
            }
            if text.contains("secrets") {
                assert_eq!(kind, "Role", "{path}: Secrets of all namespaces: {text}");
                let only_create = rule["verbs"] == serde_json::json!(["create"]);
                let ours = [keys::CA_SECRET, keys::SINK_CONFIGURATION].map(|name| serde_json::json!([name]));
                let only_ours = ours.contains(&rule["resourceNames"]);
                assert!(only_create || only_ours, "{path}: {text}");
            }
        }
    }
}

/// A comment above each rule gives its reason.
#[test]
fn every_rule_has_its_reason() {
    let all = ["base", "overlays/secrets", "overlays/metrics-auth"].into_iter().flat_map(folder);
    for (path, _) in all.filter(|(path, _)| path.contains("rbac")) {
        let text = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("  - apiGroups:")) {
            assert!(lines[n - 1].starts_with("  # "), "{path}:{}: {line}", n + 1);
        }
    }
}

#[test]
fn the_pod_has_both_programs_rights_and_local_accounts_have_one_each() {
    let bound = |path: &str| -> BTreeMap<String, BTreeSet<String>> {
        let mut bound: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for document in documents(path) {
            let (role, subjects) = match document["kind"].as_str().unwrap() {
                "ClusterRoleBinding" => {
                    let binding: ClusterRoleBinding = serde_json::from_value(document).unwrap();
                    (binding.role_ref, binding.subjects)
                }
                "RoleBinding" => {
                    let binding: RoleBinding = serde_json::from_value(document).unwrap();
                    (binding.role_ref, binding.subjects)
                }
                _ => continue,
            };
            for subject in subjects.unwrap() {
                assert_eq!(
                    (subject.kind.as_str(), subject.namespace.as_deref()),
                    ("ServiceAccount", Some(keys::NAMESPACE))
                );
                bound.entry(subject.name).or_default().insert(format!("{} {}", role.kind, role.name));
            }
        }
        bound
    };
    let roles = |program: &str| {
        BTreeSet::from(["ClusterRole", "Role"].map(|kind| format!("{kind} job-handler-{program}")))
    };
    for program in ["webhook", "sink"] {
        let path = format!("base/rbac-{program}.yaml");
        assert_eq!(bound(&path), BTreeMap::from([(keys::APP.to_owned(), roles(program))]));
        let name = format!("job-handler-{program}");
        assert_eq!(bound("overlays/local/serviceaccounts.yaml")[&name], roles(program));
        let _: ServiceAccount = object("overlays/local/serviceaccounts.yaml", "ServiceAccount", &name);
    }
    let _: ServiceAccount = object("base/serviceaccount.yaml", "ServiceAccount", keys::APP);
}

#[test]
fn only_admins_may_write_policies() {
    let writes = ["create", "update", "patch", "delete", "deletecollection"];
    for document in documents("base/rbac-people.yaml") {
        let role: ClusterRole = serde_json::from_value(document).unwrap();
        let labels = role.metadata.labels.unwrap();
        let rights = rights(role.rules);
        let may_write = rights.iter().any(|right| writes.contains(&right.split(' ').next().unwrap()));
        let to_edit = labels.contains_key("rbac.authorization.k8s.io/aggregate-to-edit");
        let to_view = labels.contains_key("rbac.authorization.k8s.io/aggregate-to-view");
        assert!(!(may_write && (to_edit || to_view)), "{rights:?}");
        assert!(labels.contains_key("rbac.authorization.k8s.io/aggregate-to-admin"));
        assert!(!rights.iter().any(|right| may_write && right.contains("clusterjobpolicies")), "{rights:?}");
    }
}
