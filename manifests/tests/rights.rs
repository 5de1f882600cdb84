//! Who may do what: least privilege, as a table.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use std::collections::{BTreeMap, BTreeSet};

use files::{documents, folder, object};
use job_handler_shared::{keys, names, process::admin::METRICS_PATH};
use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhook, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    },
    apps::v1::Deployment,
    core::v1::{Secret, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleRef, Subject},
};
use serde_json::{Value, json};

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

const POLICIES_FILE: &str = "base/validatingadmissionpolicies-rights.yaml";

/// The rights of the ClusterRole `job-handler-ROLE`.
fn cluster(role: &str) -> BTreeSet<String> {
    let program = role.split('-').next().unwrap();
    let role: ClusterRole =
        object(&format!("base/rbac-{program}.yaml"), "ClusterRole", &format!("job-handler-{role}"));
    rights(role.rules)
}

fn limits_configurations() -> Vec<String> {
    (0..keys::LIMITS_CONFIGURATIONS).map(names::limits_configuration).collect()
}

fn own(program: &str) -> BTreeSet<String> {
    let role: Role = object(&format!("base/rbac-{program}.yaml"), "Role", &format!("job-handler-{program}"));
    rights(role.rules)
}

#[test]
fn the_webhook_may_read_policies_namespaces_and_jobs_and_manage_its_certificates_and_paths() {
    let configurations = limits_configurations();
    let limits = configurations
        .iter()
        .map(|name| (ADMISSION, "validatingwebhookconfigurations", name.as_str(), "get"));
    let expected = [
        (POLICIES, "clusterjobpolicies", "", "list watch"),
        (POLICIES, "jobpolicies", "", "list watch"),
        ("", "namespaces", "", "list watch"),
        ("batch", "jobs", "", "get list watch"),
        (ADMISSION, "validatingwebhookconfigurations", "", "list watch"),
        (ADMISSION, "mutatingwebhookconfigurations", keys::MUTATING_CONFIGURATION, "get list watch patch"),
    ];
    let expected: Vec<_> = expected.into_iter().chain(limits).collect();
    assert_eq!(cluster("webhook"), table(&expected));
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
            ("batch", "jobs", "", "get patch delete"),
            ("", "pods", "", "list watch"),
            ("", "pods/log", "", "get"),
            ("", "configmaps", "", "get list watch create update patch delete"),
            ("events.k8s.io", "events", "", "create patch"),
            (POLICIES, "jobpolicies/status", "", "patch"),
        ])
    );
    let configurations = limits_configurations();
    let restored = configurations
        .iter()
        .map(|name| (ADMISSION, "validatingwebhookconfigurations", name.as_str(), "get list watch update"));
    let expected = [
        ("batch", "jobs", "", "list watch"),
        (POLICIES, "clusterjobpolicies", "", "list watch create"),
        (POLICIES, "jobpolicies", "", "list watch"),
        (POLICIES, "clusterjobpolicies/status", "", "patch"),
        ("", "namespaces", "", "list watch"),
        (ADMISSION, "validatingwebhookconfigurations", "", "create"),
        (ADMISSION, "mutatingwebhookconfigurations", keys::MUTATING_CONFIGURATION, "get list watch"),
    ];
    let expected: Vec<_> = expected.into_iter().chain(restored).collect();
    assert_eq!(cluster("sink-cluster"), table(&expected));
    assert_eq!(
        own("sink"),
        table(&[
            (POLICIES, "jobledgers", "", "get list watch patch delete"),
            ("coordination.k8s.io", "leases", "", "get list watch create update"),
            ("", "configmaps", keys::DEFAULTS, "get patch"),
            ("", "secrets", "", "create"),
            ("", "secrets", keys::SEAL_SECRET, "get"),
            ("", "secrets", keys::SINK_CONFIGURATION, "get"),
        ])
    );
}

/// The table of `README.md` names the call that needs each right: a row for rights that one call needs.
#[test]
fn the_readme_lists_every_right_with_its_call() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let table =
        readme.split_once("| program | where | resource | verbs | call |").expect("the table of rights").1;
    let mut listed: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [program, place, resources, verbs, call] = cells[..] else { panic!("five cells: {row}") };
        let code =
            |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let files = code(call);
        assert!(!files.is_empty(), "{row}");
        for file in files {
            let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&path).is_file(), "{row}: there is no {file}");
        }
        let rights = listed.entry((program.to_owned(), place.to_owned())).or_default();
        for resource in code(resources) {
            // Those of the core group have no group in the table.
            let (kind, name) =
                resource.split_once(' ').map_or((&*resource, None), |(kind, name)| (kind, Some(name)));
            let is_core = !kind.contains('/') || kind == "pods/log";
            let kind = if is_core { format!("/{kind}") } else { kind.to_owned() };
            let name = name.map_or(String::new(), |name| format!(" {name}"));
            for verb in verbs.split(", ") {
                assert!(
                    rights.insert(format!("{verb} {kind}{name}")),
                    "twice: {verb} {resource} of {program}"
                );
            }
        }
    }
    let row = |program: &str, place: &str, rights| ((program.to_owned(), place.to_owned()), rights);
    // One name in the table stands for the configurations of all numbers.
    let one_name = |right: String| match right.split_once(keys::LIMITS_CONFIGURATION) {
        Some((action, _)) => format!("{action}{}", keys::LIMITS_CONFIGURATION),
        None => right,
    };
    let expected = BTreeMap::from([
        row("webhook", "cluster", cluster("webhook").into_iter().map(one_name).collect()),
        row("webhook", "own", own("webhook")),
        row("sink", "Jobs", cluster("sink")),
        row("sink", "cluster", cluster("sink-cluster").into_iter().map(one_name).collect()),
        row("sink", "own", own("sink")),
    ]);
    assert_eq!(listed, expected);
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
    let expected = (keys::SINK_ACCOUNT, Some(keys::NAMESPACE));
    assert_eq!((subject.name.as_str(), subject.namespace.as_deref()), expected);
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
    let named = subjects.iter().map(|subject| (subject.name.as_str(), subject.namespace.as_deref()));
    let accounts =
        [keys::WEBHOOK_ACCOUNT, keys::SINK_ACCOUNT].map(|account| (account, Some(keys::NAMESPACE)));
    assert_eq!(named.collect::<Vec<_>>(), accounts);
    let reader: ClusterRole = object(path, "ClusterRole", "job-handler-metrics-reader");
    let [rule] = reader.rules.unwrap().try_into().expect("one rule");
    assert_eq!(rule.non_resource_urls.unwrap(), [METRICS_PATH]);
    assert_eq!(rule.verbs, ["get"]);
}

#[test]
fn no_wildcards_no_escalation_and_no_secrets_of_others() {
    for (path, document) in folder("base").into_iter().chain(folder("overlays/namespaces")) {
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
                let ours = [keys::CA_SECRET, keys::SEAL_SECRET, keys::SINK_CONFIGURATION];
                let ours = ours.map(|name| serde_json::json!([name]));
                let only_ours = ours.contains(&rule["resourceNames"]);
                assert!(only_create || only_ours, "{path}: {text}");
            }
        }
    }
}

/// A comment above each rule gives its reason.
#[test]
fn every_rule_has_its_reason() {
    let all = ["base", "overlays/secrets", "overlays/namespaces", "overlays/metrics-auth"]
        .into_iter()
        .flat_map(folder);
    for (path, _) in all.filter(|(path, _)| path.contains("rbac")) {
        let text = std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("  - apiGroups:")) {
            assert!(lines[n - 1].starts_with("  # "), "{path}:{}: {line}", n + 1);
        }
    }
}

/// Which roles the accounts of our namespace are bound to, by account, and in which namespace.
fn bound(path: &str) -> BTreeMap<String, BTreeSet<(String, Option<String>)>> {
    let mut bound: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for document in documents(path) {
        if !["ClusterRoleBinding", "RoleBinding"].contains(&document["kind"].as_str().unwrap()) {
            continue;
        }
        let role: RoleRef = serde_json::from_value(document["roleRef"].clone()).unwrap();
        let subjects: Vec<Subject> = serde_json::from_value(document["subjects"].clone()).unwrap();
        let namespace = document["metadata"]["namespace"].as_str().map(str::to_owned);
        for subject in subjects {
            assert_eq!(
                (subject.kind.as_str(), subject.namespace.as_deref()),
                ("ServiceAccount", Some(keys::NAMESPACE))
            );
            let role = format!("{} {}", role.kind, role.name);
            bound.entry(subject.name).or_default().insert((role, namespace.clone()));
        }
    }
    bound
}

#[test]
fn each_program_has_an_account_with_its_own_roles() {
    let own = || Some(keys::NAMESPACE.to_owned());
    let expected = |account: &str, roles: &[(&str, Option<String>)]| {
        let roles: BTreeSet<(String, Option<String>)> =
            roles.iter().map(|(role, namespace)| ((*role).to_owned(), namespace.clone())).collect();
        BTreeMap::from([(account.to_owned(), roles)])
    };
    let webhook = [("ClusterRole job-handler-webhook", None), ("Role job-handler-webhook", own())];
    assert_eq!(bound("base/rbac-webhook.yaml"), expected(keys::WEBHOOK_ACCOUNT, &webhook));
    let sink = [
        ("ClusterRole job-handler-sink", None),
        ("ClusterRole job-handler-sink-cluster", None),
        ("Role job-handler-sink", own()),
    ];
    assert_eq!(bound("base/rbac-sink.yaml"), expected(keys::SINK_ACCOUNT, &sink));
    for account in [keys::WEBHOOK_ACCOUNT, keys::SINK_ACCOUNT] {
        let _: ServiceAccount = object("base/serviceaccounts.yaml", "ServiceAccount", account);
    }
}

/// The pod has the webhook's account; only the sink's container mounts the token of the other one.
#[test]
fn only_the_sinks_container_has_the_sinks_token() {
    let token: Secret = object("base/serviceaccounts.yaml", "Secret", keys::SINK_TOKEN);
    assert_eq!(token.type_.as_deref(), Some("kubernetes.io/service-account-token"));
    assert_eq!(token.data, None, "applying again would take the token away");
    assert_eq!(token.metadata.annotations.unwrap()["kubernetes.io/service-account.name"], keys::SINK_ACCOUNT);
    let deployment: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name.as_deref(), Some(keys::WEBHOOK_ACCOUNT));
    let with_token = |volume: &&k8s_openapi::api::core::v1::Volume| {
        volume.secret.as_ref().is_some_and(|secret| secret.secret_name.as_deref() == Some(keys::SINK_TOKEN))
    };
    let volume = pod.volumes.iter().flatten().find(with_token).unwrap();
    for container in &pod.containers {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mount = mounts.find(|mount| mount.name == volume.name);
        assert_eq!(mount.is_some(), container.name == "sink", "{}", container.name);
        // Where client libraries look for a token.
        let expected = "/var/run/secrets/kubernetes.io/serviceaccount";
        assert!(mount.is_none_or(|mount| mount.mount_path == expected), "{mount:?}");
    }
}

/// What a kustomization that names namespaces must change, as in the example.
#[test]
fn the_overlay_for_namespaces_binds_the_sinks_role_there_only() {
    let path = "overlays/namespaces/rbac.yaml";
    let there = |role: &str, namespace: &str| (role.to_owned(), Some(namespace.to_owned()));
    let roles = BTreeSet::from([
        there("ClusterRole job-handler-sink", "ci"),
        there("Role job-handler-sink-events", "default"),
    ]);
    assert_eq!(bound(path), BTreeMap::from([(keys::SINK_ACCOUNT.to_owned(), roles)]));
    let events: Role = object(path, "Role", "job-handler-sink-events");
    assert_eq!(rights(events.rules), table(&[("events.k8s.io", "events", "", "create patch")]));

    let [kustomization] =
        documents("overlays/namespaces/kustomization.yaml").try_into().expect("one document");
    let [binding, deployment, webhooks] = kustomization["patches"].as_array().unwrap().as_slice() else {
        panic!("three patches")
    };
    let parsed =
        |patch: &Value| -> Value { serde_norway::from_str(patch["patch"].as_str().unwrap()).unwrap() };
    let binding = parsed(binding);
    assert_eq!((&binding["$patch"], &binding["kind"]), (&json!("delete"), &json!("ClusterRoleBinding")));
    assert_eq!(binding["metadata"]["name"], "job-handler-sink");
    let base: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    let containers = base.spec.unwrap().template.spec.unwrap().containers;
    let at = containers.iter().position(|container| container.name == "sink").unwrap();
    let argument = parsed(deployment);
    assert_eq!(argument[0]["path"], format!("/spec/template/spec/containers/{at}/args/-"));
    assert_eq!(argument[0]["value"], "--namespaces=ci");
    for n in 0..2 {
        let selector = &parsed(webhooks)[n];
        assert_eq!(selector["path"], format!("/webhooks/{n}/namespaceSelector"));
        assert_eq!(selector["value"]["matchExpressions"][0]["values"], json!(["ci"]));
    }
}

fn admission_policy(name: &str) -> ValidatingAdmissionPolicy {
    let binding: ValidatingAdmissionPolicyBinding =
        object(POLICIES_FILE, "ValidatingAdmissionPolicyBinding", name);
    let binding = binding.spec.unwrap();
    assert_eq!(binding.policy_name.as_deref(), Some(name));
    assert_eq!(binding.validation_actions.unwrap(), ["Deny"]);
    let policy: ValidatingAdmissionPolicy = object(POLICIES_FILE, "ValidatingAdmissionPolicy", name);
    assert_eq!(policy.spec.as_ref().unwrap().failure_policy.as_deref(), Some("Fail"));
    policy
}

/// Each is for one of the accounts, so that it costs others no more than a comparison.
#[test]
fn the_admission_policies_are_about_our_accounts() {
    for (name, account) in [
        ("job-handler-sink-namespaces", keys::SINK_ACCOUNT),
        ("job-handler-sink-configurations", keys::SINK_ACCOUNT),
        ("job-handler-sink-secrets", keys::SINK_ACCOUNT),
        ("job-handler-webhook-configurations", keys::WEBHOOK_ACCOUNT),
        ("job-handler-webhook-secrets", keys::WEBHOOK_ACCOUNT),
        ("job-handler-webhook-leases", keys::WEBHOOK_ACCOUNT),
    ] {
        let conditions = admission_policy(name).spec.unwrap().match_conditions.unwrap();
        let [condition] = conditions.try_into().expect("one condition");
        let user = format!("system:serviceaccount:{}:{account}", keys::NAMESPACE);
        assert_eq!(condition.expression, format!("request.userInfo.username == '{user}'"), "{name}");
    }
    assert_eq!(documents(POLICIES_FILE).len(), 12);
}

/// With the label that the webhook gives its Leases.
#[test]
fn the_webhook_writes_leases_of_webhooks_only() {
    let validations = admission_policy("job-handler-webhook-leases").spec.unwrap().validations.unwrap();
    let label = format!("labels[?'{}'].orValue('') == '{}'", keys::COMPONENT, keys::COMPONENT_WEBHOOK);
    for object in ["object", "oldObject"] {
        let compared = format!(" {object}.metadata.?{label}");
        assert!(validations[0].expression.contains(&compared), "{compared}");
    }
    let leader = format!("request.name != '{}'", keys::LEADER_LEASE);
    assert!(validations[0].expression.contains(&leader), "{leader}");
}

#[test]
fn the_sink_writes_nothing_in_excluded_namespaces() {
    let spec = admission_policy("job-handler-sink-namespaces").spec.unwrap();
    let constraints = spec.match_constraints.unwrap();
    let [selector] =
        constraints.namespace_selector.unwrap().match_expressions.unwrap().try_into().expect("one");
    assert_eq!((selector.key.as_str(), selector.operator.as_str()), ("kubernetes.io/metadata.name", "In"));
    assert_eq!(selector.values.unwrap(), keys::EXCLUDED_NAMESPACES);
    let mut covered = BTreeSet::new();
    for rule in constraints.resource_rules.unwrap() {
        assert_eq!(rule.operations.unwrap(), ["CREATE", "UPDATE", "DELETE"]);
        let [group] = rule.api_groups.unwrap().try_into().expect("one group");
        covered.extend(rule.resources.unwrap().iter().map(|resource| format!("{group}/{resource}")));
    }
    let secrets: ClusterRole =
        object("overlays/secrets/rbac.yaml", "ClusterRole", "job-handler-sink-secrets");
    let writable = cluster("sink").into_iter().chain(rights(secrets.rules));
    let writable: BTreeSet<String> = writable
        .filter_map(|right| {
            let (verb, resource) = right.split_once(' ')?;
            (!["get", "list", "watch"].contains(&verb)).then(|| resource.to_owned())
        })
        .collect();
    assert_eq!(covered, writable);
}

/// A field that the policy does not compare could be changed.
#[test]
fn the_webhook_changes_no_field_but_the_ca_bundle_and_paths() {
    let validations =
        admission_policy("job-handler-webhook-configurations").spec.unwrap().validations.unwrap();
    let all: String = validations.into_iter().map(|validation| validation.expression).collect();
    let compares = |field: &str| {
        let is_compared = |access: &str| all.contains(&format!("new.{access}{field} == old.{access}{field}"));
        is_compared("") || is_compared("?")
    };
    let full = json!({
        "name": "n", "admissionReviewVersions": [], "clientConfig": {}, "failurePolicy": "", "matchConditions": [],
        "matchPolicy": "", "namespaceSelector": {}, "objectSelector": {}, "reinvocationPolicy": "", "rules": [],
        "sideEffects": "", "timeoutSeconds": 1,
    });
    // Exhaustive: a new field of the type fails to compile here.
    let MutatingWebhook {
        name: _,
        admission_review_versions: _,
        client_config: _,
        failure_policy: _,
        match_conditions: _,
        match_policy: _,
        namespace_selector: _,
        object_selector: _,
        reinvocation_policy: _,
        rules: _,
        side_effects: _,
        timeout_seconds: _,
    } = serde_json::from_value(full.clone()).unwrap();
    for field in full.as_object().unwrap().keys().filter(|field| *field != "clientConfig") {
        assert!(compares(field), "{field}");
    }
    // Of the address, the path may change: it has a secret.
    for field in ["namespace", "name", "port"] {
        let field = format!("clientConfig.?service.?{field}");
        assert!(all.contains(&format!("new.{field} == old.{field}")), "{field}");
    }
    for part in ["getScheme", "getHost"] {
        let part = |of: &str| format!("url({of}.clientConfig.url).{part}()");
        assert!(all.contains(&format!("{} == {}", part("new"), part("old"))), "{}", part("new"));
    }
    assert!(!all.contains("caBundle") && !all.contains("path"));
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
