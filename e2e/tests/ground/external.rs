//! An existing cluster instead of our own: this very test binary, run against a cluster that this test
//! started.

use std::time::Duration;

use job_handler_e2e::{Cluster, wait_for};
use tokio::process::Command;

#[tokio::test]
async fn an_existing_cluster_is_used_and_left_as_it_was() {
    let cluster = Cluster::shared().await.unwrap();
    let run = |test: &'static str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture"]).env("E2E_KUBECONFIG", cluster.kubeconfig());
        async move { command.output().await.unwrap() }
    };
    let output = run("boot::a_job_made_by_kubectl_completes").await;
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

    // What only a cluster of our own can do says so.
    let output = run("boot::the_audit_log_names_who_asked").await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("the audit log needs a cluster of our own"), "{told}");
}
