//! Boot.

use std::time::{Duration, Instant};

use job_handler_e2e::{Cluster, ClusterOptions, wait_for};

#[tokio::test]
async fn a_cluster_boots_and_a_job_completes() {
    let started = Instant::now();
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    eprintln!("booted in {:?}", started.elapsed());
    let namespace = cluster.namespace("boot").await.unwrap();
    let made = cluster
        .kubectl(&["-n", &namespace, "create", "job", "hello", "--image=busybox", "--", "echo", "hello"])
        .await
        .unwrap();
    eprintln!("{made}");
    let done = wait_for(Duration::from_secs(30), "the Job to complete", || async {
        let status = cluster
            .kubectl(&["-n", &namespace, "get", "job", "hello", "-o", "jsonpath={.status.succeeded}"])
            .await;
        match status {
            Ok(text) if text == "1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    eprintln!("{}", cluster.kubectl(&["get", "nodes,pods", "-A", "-o", "wide"]).await.unwrap());
    eprintln!("{}", cluster.kubectl(&["get", "pods", "-n", &namespace, "-o", "yaml"]).await.unwrap());
    eprintln!("{:?}", started.elapsed());
    if done.is_err() {
        eprintln!("{}", std::fs::read_to_string(cluster.dir().join("logs/kwok.log")).unwrap());
    }
    done.unwrap();
}
