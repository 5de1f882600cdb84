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
    assert!(log.contains("/namespaces/boot-"), "the test did not use this cluster");
    wait_for(Duration::from_secs(60), "its namespace to be deleted", || async {
        let names =
            cluster.kubectl(&["get", "namespaces", "-o", "name"]).await.map_err(|error| error.to_string())?;
        if names.contains("namespace/boot-") { Err(names) } else { Ok(()) }
    })
    .await
    .unwrap();

    // Operations that an existing cluster does not support say so.
    let output = run("boot::the_audit_log_contains_the_user_agent").await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("the audit log needs a new cluster"), "{errors}");
}

/// Not a test of its own: the next test runs it.
#[tokio::test]
async fn installs_the_pair() {
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
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["existing_cluster::installs_the_pair", "--exact", "--nocapture"])
        .env(E2E_KUBECONFIG, cluster.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    assert!(log.contains("job-handler-sink/"), "the sink did not use this cluster");
    wait_for(Duration::from_secs(60), "all objects of job-handler to be deleted", || async {
        let kinds = "namespaces,crds,clusterroles,clusterrolebindings,\
                     mutatingwebhookconfigurations,validatingwebhookconfigurations,\
                     validatingadmissionpolicies,validatingadmissionpolicybindings";
        let output =
            cluster.kubectl(&["get", kinds, "-o", "name"]).await.map_err(|error| error.to_string())?;
        let names: Vec<&str> = output.lines().filter(|name| name.contains("job-handler")).collect();
        if names.is_empty() { Ok(()) } else { Err(names.join(" ")) }
    })
    .await
    .unwrap();
}
