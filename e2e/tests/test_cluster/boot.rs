//! The cluster boots, with the real kubectl, RBAC and Job controller.

use std::time::Duration;

use job_handler_e2e::Cluster;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_job_created_by_kubectl_completes() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("boot").await.unwrap();
    cluster
        .kubectl(&["-n", &namespace, "create", "job", "hello", "--image=busybox", "--", "echo", "hello"])
        .await
        .unwrap();
    cluster.wait_job_finished(&namespace, "hello", SOON).await.unwrap();
    let waited = cluster.kubectl(&["-n", &namespace, "wait", "--for=condition=Complete", "job/hello"]).await;
    assert_eq!(waited.unwrap(), "job.batch/hello condition met\n");
    let logs = cluster.kubectl(&["-n", &namespace, "logs", "job/hello"]).await.unwrap();
    assert!(logs.starts_with("hello from container hello of pod hello-"), "{logs}");
}

#[tokio::test]
async fn client_and_server_have_the_same_version() {
    let cluster = Cluster::shared().await.unwrap();
    let version = cluster.kubectl(&["version"]).await.unwrap();
    assert!(version.contains("Client Version: v1.36.3"), "{version}");
    assert!(version.contains("Server Version: v1.36.3"), "{version}");
}

#[tokio::test]
async fn rbac_is_enforced() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("rbac").await.unwrap();
    let token = cluster.kubectl(&["-n", &namespace, "create", "token", "default"]).await.unwrap();
    let refused = cluster
        .try_kubectl(
            &[
                "--kubeconfig=/dev/null",
                "--server",
                &cluster.config().cluster_url.to_string(),
                "--insecure-skip-tls-verify",
                "--token",
                token.trim(),
                "-n",
                &namespace,
                "get",
                "pods",
            ],
            b"",
        )
        .await
        .unwrap();
    let user = format!("system:serviceaccount:{}:default", namespace.name());
    assert!(refused.stderr.contains("Forbidden") && refused.stderr.contains(&user), "{refused:?}");
}

#[tokio::test]
async fn the_audit_log_contains_the_user_agent() {
    let cluster = Cluster::shared().await.unwrap();
    let path = cluster.audit_log().unwrap();
    let namespace = cluster.namespace("audit").await.unwrap();
    cluster.kubectl(&["create", "configmap", "audited", "-n", &namespace]).await.unwrap();
    let log = std::fs::read_to_string(path).unwrap();
    let entry = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|entry| entry["verb"] == "create" && entry["objectRef"]["name"] == "audited")
        .expect("the creation of the ConfigMap is in the audit log");
    assert_eq!(entry["user"]["username"], "e2e-admin");
    let agent = entry["userAgent"].as_str().unwrap();
    assert!(agent.starts_with("kubectl/v1.36.3 "), "{agent}");
}
