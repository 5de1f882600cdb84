//! Names, ports, paths and fields of the base agree with the code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use std::collections::BTreeSet;

use files::{documents, folder, object};
use job_handler_shared::{
    keys,
    policy::{
        cleanup::CleanupPolicy,
        spec::{ClusterJobPolicy, Mode},
    },
};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
        apps::v1::Deployment,
        core::v1::{Container, Namespace, PodSpec, Probe, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

/// The webhooks for creates and for updates.
fn webhooks() -> [MutatingWebhook; 2] {
    let configuration: MutatingWebhookConfiguration = object(
        "base/mutatingwebhookconfiguration.yaml",
        "MutatingWebhookConfiguration",
        keys::MUTATING_CONFIGURATION,
    );
    configuration.webhooks.unwrap().try_into().expect("two webhooks")
}

fn pod() -> PodSpec {
    let deployment: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    deployment.spec.unwrap().template.spec.unwrap()
}

fn container(name: &str) -> Container {
    pod().containers.into_iter().find(|container| container.name == name).unwrap()
}

#[test]
fn the_webhook_is_called_as_designed() {
    let [creates, updates] = webhooks();
    assert_eq!(creates.match_conditions, None, "a condition would make each create slower");
    for (webhook, name, operation) in
        [(creates, keys::MUTATING_WEBHOOK, "CREATE"), (updates, keys::MUTATING_UPDATE_WEBHOOK, "UPDATE")]
    {
        assert_eq!(webhook.name, name);
        assert_eq!(webhook.side_effects, "None");
        assert_eq!(webhook.reinvocation_policy.as_deref(), Some("IfNeeded"));
        assert_eq!(webhook.failure_policy.as_deref(), Some("Ignore"));
        assert_eq!(webhook.timeout_seconds, Some(2));
        assert_eq!(webhook.match_policy.as_deref(), Some("Equivalent"));
        assert_eq!(webhook.admission_review_versions, ["v1"]);
        assert_eq!(webhook.object_selector, None);

        let [rule] = webhook.rules.unwrap().try_into().expect("one rule");
        assert_eq!(rule.api_groups.unwrap(), ["batch"]);
        assert_eq!(rule.api_versions.unwrap(), ["v1"]);
        assert_eq!(rule.resources.unwrap(), ["jobs"]);
        assert_eq!(rule.operations.unwrap(), [operation]);
        assert_eq!(rule.scope.as_deref(), Some("Namespaced"));

        let service = webhook.client_config.service.unwrap();
        assert_eq!((service.name.as_str(), service.namespace.as_str()), (keys::APP, keys::NAMESPACE));
        assert_eq!(service.path, None, "a later apply would remove the secret");
        assert_eq!(webhook.client_config.ca_bundle, None, "a later apply would remove the caBundle");
        assert_eq!(webhook.client_config.url, None);
    }
}

#[test]
fn excluded_namespaces_are_those_of_the_code_and_our_own() {
    for webhook in webhooks() {
        let selector = webhook.namespace_selector.unwrap();
        assert_eq!(selector.match_labels, None);
        let [expression] = selector.match_expressions.unwrap().try_into().expect("one expression");
        assert_eq!(
            (expression.key.as_str(), expression.operator.as_str()),
            ("kubernetes.io/metadata.name", "NotIn")
        );
        let mut expected = keys::EXCLUDED_NAMESPACES.to_vec();
        expected.push(keys::NAMESPACE);
        assert_eq!(expression.values.unwrap(), expected);
    }
}

/// The condition reads the three stamped numbers, each as an optional field. `e2e/tests/own_cluster/base_install.rs` evaluates it on
/// a real apiserver.
#[test]
fn updates_are_sent_where_a_stamped_number_changes() {
    let [_, updates] = webhooks();
    let [condition] = updates.match_conditions.unwrap().try_into().expect("one condition");
    let parts: Vec<_> = condition.expression.split("||").map(str::trim).collect();
    let expected = ["ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit"]
        .map(|field| format!("object.spec.?{field} != oldObject.spec.?{field}"));
    assert_eq!(parts, expected);
}

#[test]
fn ports_and_arguments_are_those_of_the_programs() {
    let ports = |container: &Container| -> BTreeSet<(String, i32)> {
        container.ports.iter().flatten().map(|p| (p.name.clone().unwrap(), p.container_port)).collect()
    };
    let (webhook, sink) = (container("webhook"), container("sink"));
    let admin = ("webhook-admin".to_owned(), i32::from(keys::WEBHOOK_ADMIN_PORT));
    let serving = ("webhook".to_owned(), i32::from(keys::WEBHOOK_PORT));
    assert_eq!(ports(&webhook), BTreeSet::from([serving, admin]));
    assert_eq!(ports(&sink), BTreeSet::from([("sink-admin".to_owned(), i32::from(keys::SINK_ADMIN_PORT))]));

    assert_eq!(webhook.command.unwrap(), ["job-handler-webhook"]);
    let expected = [
        format!("--listen=0.0.0.0:{}", keys::WEBHOOK_PORT),
        format!("--admin-listen=0.0.0.0:{}", keys::WEBHOOK_ADMIN_PORT),
        format!("--refusal-socket={}", keys::REFUSAL_SOCKET),
        "--log-format=json".to_owned(),
    ];
    assert_eq!(webhook.args.unwrap(), expected);
    assert_eq!(sink.command.unwrap(), ["job-handler-sink"]);
    let expected = [
        "run".to_owned(),
        format!("--admin-listen=0.0.0.0:{}", keys::SINK_ADMIN_PORT),
        format!("--refusal-socket={}", keys::REFUSAL_SOCKET),
        format!("--config={}", keys::SINK_CONFIGURATION_FILE),
        "--log-format=json".to_owned(),
    ];
    assert_eq!(sink.args.unwrap(), expected);
}

#[test]
fn both_containers_share_the_socket_and_know_where_they_are() {
    let folder = std::path::Path::new(keys::REFUSAL_SOCKET).parent().unwrap().to_str().unwrap();
    for container in pod().containers {
        let mounts = container.volume_mounts.unwrap();
        assert!(mounts.iter().any(|m| m.name == "run" && m.mount_path == folder), "{}", container.name);
        let env: BTreeSet<_> = container
            .env
            .unwrap()
            .into_iter()
            .map(|e| (e.name, e.value_from.unwrap().field_ref.unwrap().field_path))
            .collect();
        let expected = [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace")];
        assert_eq!(env, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
    }
    let volumes = pod().volumes.unwrap();
    assert!(volumes.iter().any(|volume| volume.name == "run" && volume.empty_dir.is_some()));
}

/// The sink also starts without the operator's ConfigMap.
#[test]
fn the_sinks_configuration_may_be_missing() {
    let folder = std::path::Path::new(keys::SINK_CONFIGURATION_FILE).parent().unwrap().to_str().unwrap();
    let mounts = container("sink").volume_mounts.unwrap();
    let mount = mounts.iter().find(|mount| mount.mount_path == folder).unwrap();
    let volume = pod().volumes.unwrap().into_iter().find(|volume| volume.name == mount.name).unwrap();
    let source = volume.config_map.unwrap();
    assert_eq!((source.name.as_str(), source.optional), (keys::SINK_CONFIGURATION, Some(true)));
}

#[test]
fn probes_ask_the_admin_endpoints() {
    let asks = |probe: Option<Probe>| {
        let get = probe.unwrap().http_get.unwrap();
        (get.path.unwrap(), get.port)
    };
    let port = |name: &str| IntOrString::String(name.to_owned());
    let webhook = container("webhook");
    assert_eq!(asks(webhook.readiness_probe), ("/readyz".to_owned(), port("webhook-admin")));
    assert_eq!(asks(webhook.liveness_probe), ("/healthz".to_owned(), port("webhook-admin")));
    let sink = container("sink");
    assert_eq!(asks(sink.liveness_probe), ("/healthz".to_owned(), port("sink-admin")));
    assert_eq!(
        sink.readiness_probe, None,
        "a sink that is behind must not take the webhook out of the Service"
    );
}

/// The profile «restricted» of the Pod Security Standards, field by field.
#[test]
fn every_container_is_restricted() {
    let pod = pod();
    let context = pod.security_context.unwrap();
    assert_eq!(context.run_as_non_root, Some(true));
    assert!(context.run_as_user.is_some_and(|user| user > 0));
    assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
    assert!(pod.volumes.unwrap().iter().all(|volume| volume.host_path.is_none()));
    let containers: Vec<_> =
        pod.containers.into_iter().chain(pod.init_containers.into_iter().flatten()).collect();
    assert_eq!(containers.len(), 2);
    for container in containers {
        let context = container.security_context.unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
        assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
        let capabilities = context.capabilities.unwrap();
        assert_eq!((capabilities.drop.unwrap(), capabilities.add), (vec!["ALL".to_owned()], None));
        assert_eq!(context.privileged, None);
        let resources = container.resources.unwrap();
        for amount in ["cpu", "memory"] {
            assert!(resources.requests.as_ref().unwrap().contains_key(amount), "{}", container.name);
        }
        assert!(resources.limits.unwrap().contains_key("memory"), "{}", container.name);
    }
    let namespace: Namespace = object("base/namespace.yaml", "Namespace", keys::NAMESPACE);
    let labels = namespace.metadata.labels.unwrap();
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(labels[&format!("pod-security.kubernetes.io/{mode}")], "restricted");
    }
}

#[test]
fn two_replicas_survive_a_drain() {
    let deployment: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    let spec = deployment.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    assert_eq!(spec.selector.match_labels.as_ref(), Some(&labels));
    let pod = spec.template.spec.unwrap();
    let spread = pod.topology_spread_constraints.unwrap();
    assert!(spread.iter().all(|s| s.label_selector.as_ref().unwrap().match_labels.as_ref() == Some(&labels)));
    let apart = pod.affinity.unwrap().pod_anti_affinity.unwrap();
    for term in apart.preferred_during_scheduling_ignored_during_execution.unwrap() {
        let selector = term.pod_affinity_term.label_selector.unwrap();
        assert_eq!(selector.match_labels.as_ref(), Some(&labels));
    }
    let budget: PodDisruptionBudget =
        object("base/poddisruptionbudget.yaml", "PodDisruptionBudget", keys::APP);
    let budget = budget.spec.unwrap();
    assert_eq!(budget.min_available, Some(IntOrString::Int(1)));
    assert_eq!(budget.selector.unwrap().match_labels.as_ref(), Some(&labels));
    let service: Service = object("base/service.yaml", "Service", keys::APP);
    let service = service.spec.unwrap();
    assert_eq!(service.selector.as_ref(), Some(&labels));
    let [port] = service.ports.unwrap().try_into().expect("one port");
    assert_eq!(port.port, 443);
    assert_eq!(port.target_port, Some(IntOrString::String("webhook".to_owned())));
}

#[test]
fn the_default_policy_is_that_of_the_design() {
    let policy: ClusterJobPolicy =
        object("base/policies/job-handler-default.yaml", "ClusterJobPolicy", keys::DEFAULT_POLICY);
    let spec = policy.spec;
    assert_eq!(spec.namespace_selector, None);
    let spec = spec.policy;
    let labels = spec.job_selector.unwrap().match_labels.unwrap();
    assert_eq!(labels, [(keys::ENABLED.to_owned(), "true".to_owned())].into());
    assert_eq!(spec.mode, Mode::Enforce);
    assert_eq!(spec.results, Some(Default::default()));
    let cleanup = spec.cleanup.unwrap();
    assert_eq!(cleanup.succeeded_policy, CleanupPolicy::AfterHarvest);
    assert_eq!(cleanup.failed_policy, CleanupPolicy::Never);
    assert_eq!((cleanup.keep, spec.stamp, spec.group, spec.failure_backoff), (None, None, None, None));
    assert!(spec.limits.is_empty());
}

/// Reviews come from wherever the apiserver is. Metrics are for namespaces with a label. Nothing else is open.
#[test]
fn the_network_policy_opens_the_ports_of_the_pods() {
    let policy: NetworkPolicy = object("base/networkpolicy.yaml", "NetworkPolicy", keys::APP);
    let spec = policy.spec.unwrap();
    let deployment: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    let labels = deployment.spec.unwrap().template.metadata.unwrap().labels;
    assert_eq!(spec.pod_selector.unwrap().match_labels, labels);
    assert_eq!(spec.policy_types.unwrap(), ["Ingress"]);
    let [reviews, metrics] = spec.ingress.unwrap().try_into().expect("two rules");
    assert_eq!(reviews.from, None);
    let [from] = metrics.from.unwrap().try_into().expect("one peer");
    assert_eq!(
        from.namespace_selector.unwrap().match_labels.unwrap(),
        [("metrics".into(), "enabled".into())].into()
    );
    assert_eq!((from.pod_selector, from.ip_block), (None, None));
    let opened = reviews.ports.into_iter().chain(metrics.ports).flatten().map(|port| match port.port {
        Some(IntOrString::String(name)) => name,
        other => panic!("expected the name of a port, found {other:?}"),
    });
    let containers = pod().containers.into_iter().flat_map(|container| container.ports.unwrap());
    let ports: BTreeSet<String> = containers.map(|port| port.name.unwrap()).collect();
    assert_eq!(opened.collect::<BTreeSet<String>>(), ports);
}

/// The flag is given to both programs: the patches name containers by their position.
#[test]
fn the_overlay_for_metrics_gives_both_programs_the_flag() {
    let document = documents("overlays/metrics-auth/kustomization.yaml").remove(0);
    let patch = document["patches"][0]["patch"].as_str().unwrap();
    let containers = pod().containers;
    assert_eq!(containers.len(), 2);
    for n in 0..containers.len() {
        let add = format!("path: /spec/template/spec/containers/{n}/args/-, value: --metrics-auth");
        assert!(patch.contains(&add), "{patch}");
    }
}

/// Neither a policy beside its CRD (one apply would fail on a new cluster), nor a file that no kustomization lists.
#[test]
fn one_apply_of_the_base_can_succeed() {
    let [kustomization] = documents("base/kustomization.yaml").try_into().expect("one document");
    let resources: BTreeSet<String> = kustomization["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r.as_str().unwrap().to_owned())
        .collect();
    assert!(resources.contains("../crds"));
    let files: BTreeSet<String> = folder("base")
        .into_iter()
        .inspect(|(path, document)| {
            let group = document["apiVersion"].as_str().unwrap();
            assert!(!group.starts_with(keys::API_GROUP), "{path} is of a kind that the same apply creates");
        })
        .map(|(path, _)| path.replace("base/", ""))
        .collect();
    let listed: BTreeSet<String> = resources.into_iter().filter(|r| r != "../crds").collect();
    assert_eq!(files, listed);

    let generator = &kustomization["configMapGenerator"][0];
    assert_eq!(generator["name"], keys::DEFAULTS);
    assert_eq!(generator["namespace"], keys::NAMESPACE);
    assert_eq!(generator["files"][0], format!("policies/{}.yaml", keys::DEFAULT_POLICY));
    assert_eq!(kustomization["generatorOptions"]["disableNameSuffixHash"], true);
}

/// Everything that has a namespace is in ours.
#[test]
fn everything_is_in_our_namespace() {
    for (path, document) in folder("base") {
        let namespace = &document["metadata"]["namespace"];
        let scoped = [
            "Namespace",
            "ClusterRole",
            "ClusterRoleBinding",
            "MutatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        if scoped.contains(&document["kind"].as_str().unwrap()) {
            assert!(namespace.is_null(), "{path}");
        } else {
            assert_eq!(namespace, keys::NAMESPACE, "{path}");
        }
    }
}

#[test]
fn the_overlay_for_an_object_store_gives_the_sink_what_the_code_expects() {
    let patch = "overlays/object-store/sink.yaml";
    // It parses as a Deployment. The selector comes from the base.
    let mut document = documents(patch).remove(0);
    assert_eq!(document["metadata"]["name"], keys::APP);
    document["spec"]["selector"] = serde_json::json!({});
    let _typed: Deployment = serde_json::from_value(document.clone()).unwrap();
    let base: Deployment = object("base/deployment.yaml", "Deployment", keys::APP);
    let pod = &document["spec"]["template"]["spec"];
    let [sink] = &pod["containers"].as_array().unwrap()[..] else { panic!("one container is patched") };
    let base = base.spec.unwrap().template.spec.unwrap();
    assert!(
        base.containers.iter().any(|container| sink["name"] == container.name),
        "the base has a container of this name"
    );
    // The default folder of the spool.
    assert_eq!(
        sink["volumeMounts"],
        serde_json::json!([{"name": "spool", "mountPath": "/var/spool/job-handler"}])
    );
    assert_eq!(sink["envFrom"], serde_json::json!([{"secretRef": {"name": "job-handler-object-store"}}]));
    let volumes = pod["volumes"].as_array().unwrap();
    let spool: Vec<&serde_json::Value> = volumes.iter().filter(|volume| volume["name"] == "spool").collect();
    assert_eq!(spool, [&serde_json::json!({"name": "spool", "emptyDir": {"sizeLimit": "1200Mi"}})]);
    assert!(
        !base.volumes.unwrap().iter().any(|volume| volume.name == "spool"),
        "the base has no volume of this name"
    );
}
