//! `kubectl logs` returns the log that the annotations describe, and nothing after the pod is deleted, as on a real
//! node.

use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use job_handler_e2e::cluster::jobs::{in_phase, job};
use job_handler_e2e::{Cluster, ClusterOptions, TestNamespace, wait_for};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// Runs a Job to its end and returns the output of `kubectl logs` as bytes.
async fn logs(name: &str, pod: &[(&str, &str)], arguments: &[&str]) -> Vec<u8> {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace(name).await.unwrap();
    let pod: Vec<_> = pod.iter().copied().chain([("run", "0s")]).collect();
    let mut created = job(name, &pod);
    created.spec.as_mut().unwrap().backoff_limit = Some(0);
    cluster.create_job(&namespace, &created).await.unwrap();
    cluster.wait_job_finished(&namespace, name, SOON).await.unwrap();
    let target = format!("job/{name}");
    let all: Vec<&str> = ["-n", &namespace, "logs", &target].iter().chain(arguments).copied().collect();
    let output = cluster.kubectl_bytes(&all, b"").await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn start(name: &str, pod: &[(&str, &str)]) -> (&'static Cluster, TestNamespace) {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace(name).await.unwrap();
    cluster.create_job(&namespace, &job(name, pod)).await.unwrap();
    cluster.wait_pod_of(&namespace, name, SOON, in_phase("Running")).await.unwrap();
    (cluster, namespace)
}

#[tokio::test]
async fn log_text_is_returned_byte_for_byte() {
    assert_eq!(
        logs("text", &[("log", "one\ntwo, without a newline")], &[]).await,
        b"one\ntwo, without a newline"
    );
}

#[tokio::test]
async fn tail_returns_the_last_numbered_lines() {
    let seen = logs("lines", &[("log-lines", "1000")], &["--tail=2"]).await;
    assert_eq!(String::from_utf8(seen).unwrap(), "line 999 of 1000\nline 1000 of 1000\n");
}

#[tokio::test]
async fn limit_bytes_returns_the_head_of_five_mebibytes() {
    assert_eq!(logs("large", &[("log-bytes", "5Mi")], &[]).await.len(), 5 << 20);
    let head = logs("head", &[("log-bytes", "5Mi")], &["--limit-bytes=1000"]).await;
    assert!(head.len() == 1000 && head.starts_with(b"000000001 "));
}

#[tokio::test]
async fn a_binary_log_has_all_byte_values() {
    let seen = logs("binary", &[("log-binary", "1000")], &[]).await;
    let expected: Vec<u8> = (0..1000).map(|index| u8::try_from(index % 256).unwrap()).collect();
    assert!(seen == expected && String::from_utf8(seen).is_err());
}

#[tokio::test]
async fn timestamps_are_prepended() {
    let seen = String::from_utf8(logs("stamps", &[("log-lines", "1")], &["--timestamps"]).await).unwrap();
    let (stamp, line) = seen.split_once(' ').unwrap();
    assert_eq!(line, "line 1 of 1\n");
    stamp.parse::<jiff::Timestamp>().unwrap();
}

#[tokio::test]
async fn each_container_has_its_own_log() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("own").await.unwrap();
    let mut value =
        serde_json::to_value(job("own", &[("run", "0s"), ("log", "a"), ("log.other", "b")])).unwrap();
    let other = json!({"name": "other", "image": "busybox"});
    value["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(other);
    cluster.create_job(&namespace, &serde_json::from_value(value).unwrap()).await.unwrap();
    cluster.wait_job_finished(&namespace, "own", SOON).await.unwrap();
    for (container, expected) in [("main", "a"), ("other", "b")] {
        let seen = cluster.kubectl(&["-n", &namespace, "logs", "job/own", "-c", container]).await.unwrap();
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn previous_returns_the_log_of_the_previous_attempt() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("previous").await.unwrap();
    let pod = [("run", "100ms"), ("restarts", "1"), ("log", "text\n")];
    let mut value = serde_json::to_value(job("previous", &pod)).unwrap();
    value["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    cluster.create_job(&namespace, &serde_json::from_value(value).unwrap()).await.unwrap();
    cluster.wait_job_finished(&namespace, "previous", SOON).await.unwrap();
    let logs = async |more: &[&str]| {
        let arguments = [&["-n", namespace.name(), "logs", "job/previous"], more].concat();
        cluster.kubectl(&arguments).await.unwrap()
    };
    assert_eq!(logs(&[]).await, "attempt 2\ntext\n");
    assert_eq!(logs(&["--previous"]).await, "attempt 1\ntext\n");
}

#[tokio::test]
async fn a_followed_log_ends_with_the_container() {
    let (cluster, namespace) = start("follow", &[("run", "2s"), ("log-every", "50ms")]).await;
    let seen = cluster.kubectl(&["-n", &namespace, "logs", "-f", "job/follow"]).await.unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines.first(), Some(&"tick 1"));
    let count = lines.len() - 1;
    assert_eq!(count, 40, "{seen}");
    assert_eq!(lines.last(), Some(&&*format!("done after tick {count}")));
    assert!(
        lines[..count].iter().enumerate().all(|(index, line)| *line == format!("tick {}", index + 1)),
        "{seen}"
    );
    let later = cluster.kubectl(&["-n", &namespace, "logs", "job/follow"]).await.unwrap();
    assert_eq!(later, seen);
}

#[tokio::test]
async fn only_a_follower_sees_the_last_line_before_sigterm() {
    let (cluster, namespace) = start("sigterm", &[("end", "Hang"), ("log-every", "20ms")]).await;
    let pod = cluster.pods_of(&namespace, "sigterm").await.unwrap().pop().unwrap().metadata.name.unwrap();
    let follow = LogParams { follow: true, ..LogParams::default() };
    let pods: Api<Pod> = Api::namespaced(cluster.client(), &namespace);
    let mut lines = pods.log_stream(&pod, &follow).await.unwrap().lines();
    // The follower is there before the pod is deleted.
    let first = lines.next().await.unwrap().unwrap();
    assert!(first.starts_with("tick "), "{first}");
    cluster.kubectl(&["-n", &namespace, "delete", "pod", &pod]).await.unwrap();
    let seen: Vec<String> = lines.try_collect().await.unwrap();
    let last = seen.last().unwrap();
    assert!(last.starts_with("SIGTERM after tick "), "{seen:?}");
    let later = cluster.try_kubectl(&["-n", &namespace, "logs", &pod], b"").await.unwrap();
    assert!(!later.success && later.stderr.contains("not found"), "{later:?}");
}

#[tokio::test]
async fn the_logs_of_an_evicted_pod_are_gone() {
    let seen = logs("evicted-logs", &[("end", "Evicted"), ("log", "lost")], &[]).await;
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.starts_with("unable to retrieve container logs for containerd://"), "{seen}");
}

#[tokio::test]
async fn the_logs_of_a_pod_that_never_started_are_an_error() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("unstarted").await.unwrap();
    cluster
        .create_job(&namespace, &job("unstarted", &[("waiting-reason", "ImagePullBackOff")]))
        .await
        .unwrap();
    let waits = |pod: &k8s_openapi::api::core::v1::Pod| {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        started.map(drop).ok_or_else(|| "the node has not started it".to_owned())
    };
    cluster.wait_pod_of(&namespace, "unstarted", SOON, waits).await.unwrap();
    let refused = cluster.try_kubectl(&["-n", &namespace, "logs", "job/unstarted"], b"").await.unwrap();
    assert!(refused.stderr.contains("is waiting to start: trying and failing to pull image"), "{refused:?}");
}

#[tokio::test]
async fn a_hanging_log_request_is_never_answered() {
    let (cluster, namespace) = start("hanging", &[("end", "Hang"), ("log-hang", "true")]).await;
    let arguments = ["-n", namespace.name(), "logs", "job/hanging"];
    let answer = tokio::time::timeout(Duration::from_secs(2), cluster.kubectl(&arguments)).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn log_requests_of_a_hanging_node_are_answered_after_it_recovers() {
    let cluster = Cluster::start(ClusterOptions { nodes: 1, ..ClusterOptions::default() }).await.unwrap();
    cluster.create_job("default", &job("stuck", &[("run", "0s"), ("log", "text")])).await.unwrap();
    cluster.wait_job_finished("default", "stuck", SOON).await.unwrap();
    let read_logs = async || {
        let call = cluster.kubectl(&["logs", "job/stuck"]);
        tokio::time::timeout(Duration::from_secs(2), call).await.map_err(|_| "no answer")
    };
    cluster.kubectl(&["annotate", "node", "node-0", "e2e.job-handler.io/log-hang=true"]).await.unwrap();
    let hangs = async || match read_logs().await {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("{answer:?}")),
    };
    wait_for(SOON, "the node to hang", hangs).await.unwrap();
    cluster.kubectl(&["annotate", "node", "node-0", "e2e.job-handler.io/log-hang-"]).await.unwrap();
    let answers = async || match read_logs().await {
        Ok(Ok(text)) if text == "text" => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_for(SOON, "the node to answer again", answers).await.unwrap();
}
