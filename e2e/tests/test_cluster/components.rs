//! Each component can be killed, paused and restarted, and clusters are independent.

use std::time::Duration;

use job_handler_e2e::cluster::jobs::{in_phase, job};
use job_handler_e2e::{Cluster, ClusterOptions, Component, wait_for};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

const SOON: Duration = Duration::from_secs(60);

/// Asserts that a Job completes and its logs can be read, which needs every component.
async fn assert_works(cluster: &Cluster, namespace: &str, name: &str) {
    cluster.create_job(namespace, &job(name, &[("run", "100ms"), ("log", "done")])).await.unwrap();
    // Calls can still fail just after etcd is ready again, and KWOK does not retry a failed step. A restarted KWOK
    // continues with every pod.
    if cluster.wait_job_finished(namespace, name, SOON / 3).await.is_err() {
        cluster.component(Component::Kwok).unwrap().restart().await.unwrap();
        cluster.wait_job_finished(namespace, name, SOON).await.unwrap();
    }
    let logs = cluster.kubectl(&["-n", namespace, "logs", &format!("job/{name}")]).await.unwrap();
    assert_eq!(logs, "done");
}

#[tokio::test]
async fn every_component_can_be_killed_and_restarted() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let namespace = cluster.namespace("restart").await.unwrap();
    assert_works(&cluster, &namespace, "before").await;
    // A Job that runs while each component is killed, and one client for all calls.
    cluster.create_job(&namespace, &job("long-running", &[("run", "20s")])).await.unwrap();
    let client = cluster.client();
    for component in Component::SIMULATED {
        let handle = cluster.component(component).unwrap();
        let before = handle.process().id();
        handle.kill().unwrap();
        assert!(handle.process().exit_status().is_some());
        handle.restart().await.unwrap();
        assert_ne!(handle.process().id(), before, "{component:?}");
        assert_works(&cluster, &namespace, &format!("after-{}", component.name())).await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.get("kube-root-ca.crt").await.unwrap();
    let finished = cluster.wait_job_finished(&namespace, "long-running", SOON).await.unwrap();
    assert_eq!(finished.status.unwrap().succeeded, Some(1));
}

#[tokio::test]
async fn a_paused_component_does_nothing_until_it_continues() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let controllers = cluster.component(Component::ControllerManager).unwrap();
    controllers.stop().unwrap();
    cluster.create_job("default", &job("paused", &[("run", "0s")])).await.unwrap();
    let early = cluster.wait_job_finished("default", "paused", Duration::from_secs(2)).await;
    assert!(early.is_err() && cluster.pods_of("default", "paused").await.unwrap().is_empty());
    controllers.cont().unwrap();
    cluster.wait_job_finished("default", "paused", SOON).await.unwrap();

    let apiserver = cluster.component(Component::Apiserver).unwrap();
    apiserver.stop().unwrap();
    assert!(cluster.wait_ready(Duration::from_secs(1)).await.is_err());
    apiserver.cont().unwrap();
    cluster.wait_ready(SOON).await.unwrap();

    // Pods that are due to finish while etcd is paused still finish.
    cluster.create_job("default", &job("store", &[("run", "1s")])).await.unwrap();
    cluster.wait_pod_of("default", "store", SOON, in_phase("Running")).await.unwrap();
    let etcd = cluster.component(Component::Etcd).unwrap();
    etcd.stop().unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    etcd.cont().unwrap();
    cluster.wait_job_finished("default", "store", SOON).await.unwrap();
}

#[tokio::test]
async fn two_clusters_at_once_are_independent() {
    let shared = Cluster::shared().await.unwrap();
    let other = Cluster::start(ClusterOptions::default()).await.unwrap();
    assert_ne!(shared.config().cluster_url, other.config().cluster_url);
    let namespace = other.namespace("other").await.unwrap();
    let result = shared.kubectl(&["get", "namespace", &namespace]).await;
    assert!(result.unwrap_err().to_string().contains("not found"));
    assert_works(&other, &namespace, "in-other-cluster").await;
}

#[tokio::test]
async fn a_namespace_is_deleted_when_it_is_dropped() {
    let cluster = Cluster::shared().await.unwrap();
    let name = cluster.namespace("dropped").await.unwrap().name().to_owned();
    wait_for(SOON, "the namespace to be deleted", || async {
        match cluster.kubectl(&["get", "namespace", &name]).await {
            Err(error) if error.to_string().contains("not found") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}
