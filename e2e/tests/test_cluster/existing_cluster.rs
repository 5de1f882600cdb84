//! An existing cluster: this test binary runs against a cluster that the test has started.

use std::time::Duration;

use job_handler_e2e::cluster::E2E_KUBECONFIG;
use job_handler_e2e::{Cluster, ClusterOptions, Component, Pair, PairOptions, wait_for};
use tokio::process::Command;

#[tokio::test]
async fn an_existing_cluster_is_used_and_left_unchanged() {
    let cluster = Cluster::shared().await.unwrap();
    let run = |test: &'static str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture"]).env(E2E_KUBECONFIG, cluster.kubeconfig());
        async move { command.output().await.unwrap() }
    };
    let output = run("boot::a_job_created_by_kubectl_completes").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    assert!(log.contains("/namespaces/boot-"), "it ran elsewhere");
    wait_for(Duration::from_secs(30), "its namespace to be gone", || async {
        let left =
            cluster.kubectl(&["get", "namespaces", "-o", "name"]).await.map_err(|error| error.to_string())?;
        if left.contains("namespace/boot-") { Err(left) } else { Ok(()) }
    })
    .await
    .unwrap();

    // Operations that an existing cluster does not support say so.
    let output = run("boot::the_audit_log_contains_the_user_agent").await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("the audit log needs a new cluster"), "{told}");
}

/// Not a test of its own: what the next one runs.
#[tokio::test]
async fn a_guest() {
    if std::env::var_os(E2E_KUBECONFIG).is_none() {
        return;
    }
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
    assert!(cluster.component(Component::Etcd).is_err() && pair.balancer().connections()[0] > 0);
}

#[tokio::test]
async fn the_pair_is_installed_on_an_existing_cluster_and_uninstalled() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let guest = Command::new(std::env::current_exe().unwrap())
        .args(["existing_cluster::a_guest", "--exact", "--nocapture"])
        .env(E2E_KUBECONFIG, cluster.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(guest.status.success(), "{}", String::from_utf8_lossy(&guest.stderr));
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    assert!(log.contains("job-handler-sink/"), "the sink never came here");
    wait_for(Duration::from_secs(60), "everything of ours to be gone", || async {
        let kinds = "namespaces,crds,clusterroles,clusterrolebindings,\
                     mutatingwebhookconfigurations,validatingwebhookconfigurations";
        let left = cluster.kubectl(&["get", kinds, "-o", "name"]).await.map_err(|error| error.to_string())?;
        let left: Vec<&str> = left.lines().filter(|name| name.contains("job-handler")).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    })
    .await
    .unwrap();
}
