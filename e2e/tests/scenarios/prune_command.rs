//! The prune command, on Jobs without a policy, such as hook Jobs of GitOps tools.

use std::process::Output;

use job_handler_e2e::build::pair_programs;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use super::fixtures::{Fixture, job, refusal, scenario};

const KEY: &str = "argocd.argoproj.io/instance";

async fn prune(fixture: &Fixture, ns: &str, more: &[&str]) -> (Output, String) {
    let mut command = tokio::process::Command::new(pair_programs().unwrap().join("job-handler-sink"));
    command.args(["prune", "--group-label", KEY, "--namespace", ns]).args(more);
    command.env("KUBECONFIG", fixture.cluster.kubeconfig()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

/// Runs hook Jobs one after the other, so that their age follows the order of names.
async fn run_hooks(fixture: &Fixture, ns: &str, instance: &str, names: &[&str]) {
    for name in names {
        let failing = name.contains("bad");
        let simulation = [("run", "100ms"), ("exit-code", if failing { "1" } else { "0" })];
        let mut hook = job(name, &[(KEY, instance)], &simulation);
        hook["spec"]["backoffLimit"] = json!(0);
        let created = fixture.create(ns, &hook).await.unwrap();
        fixture.cluster.wait_job_finished(ns, name, super::fixtures::PATIENCE).await.unwrap();
        // Timestamps have a resolution of one second.
        let second = created.creation_timestamp().unwrap().0;
        fixture
            .wait("the next second", || async {
                let now = jiff::Timestamp::now();
                if now.as_second() > second.as_second() { Ok(()) } else { Err(now) }
            })
            .await;
    }
}

async fn remaining(fixture: &Fixture, ns: &str) -> Vec<String> {
    let all = fixture.jobs(ns).list(&ListParams::default()).await.unwrap();
    let remaining = all.items.iter().filter(|job| job.metadata.deletion_timestamp.is_none());
    remaining.map(ResourceExt::name_any).collect()
}

#[test]
fn old_hooks_are_pruned_and_the_newest_are_kept() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("prune").await.unwrap();
        run_hooks(fixture, &ns, "shop", &["shop-1", "shop-2", "shop-3-bad"]).await;
        run_hooks(fixture, &ns, "mail", &["mail-1", "mail-2"]).await;
        fixture.create(&ns, &job("mail-3", &[(KEY, "mail")], &[("end", "Hang")])).await.unwrap();
        fixture.create(&ns, &job("unlabelled", &[], &[("run", "100ms")])).await.unwrap();
        let before = remaining(fixture, &ns).await;

        let (_, client) = prune(fixture, &ns, &["--dry-run", "--limit", "2"]).await;
        let (checked, server) = prune(fixture, &ns, &["--dry-run=server", "--limit", "1"]).await;
        assert!(checked.status.success(), "{checked:?}");
        assert_eq!(client.replace(" (dry run)", ""), server.replace(" (server dry run)", ""));
        assert_eq!(remaining(fixture, &ns).await, before, "a dry run deletes nothing");
        let purged = |text: &str| {
            let lines = text.lines().filter(|line| line.starts_with("PURGE") && line.contains("SUCCESS"));
            lines.map(|line| line.split(['/', ' ']).nth(2).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(purged(&server), ["mail-1", "mail-2", "shop-1", "shop-2"]);

        let (kept, text) = prune(fixture, &ns, &["--keep-newest-succeeded", "1"]).await;
        assert!(kept.status.success(), "{kept:?}");
        assert_eq!(purged(&text), ["mail-1", "shop-1"]);
        assert!(text.contains("one of the 1 newest of its group that completed"), "{text}");
        let (done, text) = prune(fixture, &ns, &[]).await;
        assert!(done.status.success(), "{done:?}");
        assert_eq!(purged(&text), ["mail-2", "shop-2"]);
        let closing = "Found 2 (namespace, group) pairs: 2 purged, ";
        assert!(text.lines().last().unwrap().starts_with(closing), "{text}");
        fixture
            .wait("the pods of the pruned Jobs to be deleted", || async {
                let api: Api<Pod> = Api::namespaced(fixture.client(), &ns);
                let pods = api.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
                let old =
                    |pod: &&Pod| pod.name_any().starts_with("shop-1") || pod.name_any().starts_with("mail-1");
                match pods.items.iter().find(old) {
                    Some(pod) => Err(pod.name_any()),
                    None => Ok(()),
                }
            })
            .await;
        assert_eq!(remaining(fixture, &ns).await, ["mail-3", "shop-3-bad", "unlabelled"]);
    });
}

#[test]
fn a_refused_deletion_does_not_stop_the_others_and_sets_the_exit_code() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("prune-refused").await.unwrap();
        run_hooks(fixture, &ns, "shop", &["shop-1", "shop-2", "shop-3", "shop-4"]).await;
        // Cluster-wide objects that apply to this namespace only.
        let name = format!("{}-keep", ns.name());
        let policy = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
             "spec": {
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name()}},
                    "resourceRules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["DELETE"]}],
                },
                "validations": [{"expression": "oldObject.metadata.name != 'shop-2'", "message": "shop-2 is evidence"}],
             }},
            {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
             "spec": {"policyName": name, "validationActions": ["Deny"]}},
        ]})
        .to_string();
        fixture.cluster.kubectl_with_input(&["apply", "-f", "-"], &policy).await.unwrap();
        let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
        fixture
            .wait("the policy to be in force", || async {
                match fixture.jobs(&ns).delete("shop-2", &dry_run).await {
                    Err(error) if error.to_string().contains("evidence") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        assert!(refusal(fixture.jobs(&ns).delete("shop-2", &dry_run).await).1.contains("evidence"));
        let (output, text) = prune(fixture, &ns, &[]).await;
        fixture.cluster.kubectl_with_input(&["delete", "-f", "-"], &policy).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = text.lines().find(|line| line.contains("/shop-2 ")).unwrap();
        assert!(line.contains("FAILED: ") && line.contains("shop-2 is evidence"), "{line}");
        assert!(
            text.lines()
                .last()
                .unwrap()
                .starts_with("Found 1 (namespace, group) pairs: 2 purged, 1 skipped, 1 failed")
        );
        fixture
            .wait("the others to be deleted", || async {
                let names = remaining(fixture, &ns).await;
                if names == ["shop-2", "shop-4"] { Ok(()) } else { Err(format!("{names:?}")) }
            })
            .await;
    });
}
