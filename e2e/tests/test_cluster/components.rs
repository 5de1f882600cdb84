//! Each component can be killed, paused and restarted, and clusters are independent.

use std::time::Duration;

use job_handler_e2e::cluster::jobs::{in_phase, job};
use job_handler_e2e::{Cluster, ClusterOptions, Component, wait_for};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

const SOON: Duration = Duration::from_secs(60);

/// A Job completes, and its logs can be read: every component is needed for that.
async fn works(cluster: &Cluster, namespace: &str, name: &str) {
    cluster.create_job(namespace, &job(name, &[("run", "100ms"), ("log", "done")])).await.unwrap();
    // Calls can still fail just after the store is back, and KWOK does not repeat a step whose call failed: a fresh one
    // takes every pod up as it is.
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
    works(&cluster, &namespace, "before").await;
    // A Job that runs while each component is killed, and one client for all calls.
    cluster.create_job(&namespace, &job("through-it-all", &[("run", "20s")])).await.unwrap();
    let client = cluster.client();
    for component in Component::ALL {
        let handle = cluster.component(component).unwrap();
        let before = handle.process().id();
        handle.kill().unwrap();
        assert!(handle.process().exit_status().is_some());
        handle.restart().await.unwrap();
        assert_ne!(handle.process().id(), before, "{component:?}");
        works(&cluster, &namespace, &format!("after-{}", component.name())).await;
    }
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.get("kube-root-ca.crt").await.unwrap();
    let done = cluster.wait_job_finished(&namespace, "through-it-all", SOON).await.unwrap();
    assert_eq!(done.status.unwrap().succeeded, Some(1));
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

    // Pods whose time comes while the store stands still are not forgotten.
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
    let namespace = other.namespace("side").await.unwrap();
    let seen = shared.kubectl(&["get", "namespace", &namespace]).await;
    assert!(seen.unwrap_err().to_string().contains("not found"));
    works(&other, &namespace, "beside").await;
}

#[tokio::test]
async fn a_namespace_is_deleted_when_it_is_dropped() {
    let cluster = Cluster::shared().await.unwrap();
    let name = cluster.namespace("dropped").await.unwrap().name().to_owned();
    wait_for(SOON, "the namespace to be gone", || async {
        match cluster.kubectl(&["get", "namespace", &name]).await {
            Err(error) if error.to_string().contains("not found") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}
