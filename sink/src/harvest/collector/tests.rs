use job_handler_shared::{policy::bytes::Bytes, testing::apiserver::Apiserver};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::*;
use crate::harvest::log_buffer::LogExcerpt;

const JOB: &str = "job-uid";

fn pod(name: &str, phase: &str, minute: u8) -> Value {
    let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "containerID": format!("containerd://{name}")}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ci", "uid": name,
            "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
            "labels": {"batch.kubernetes.io/controller-uid": JOB},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "build", "uid": JOB,
                "controller": true}]},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main"}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "main", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": ended}]},
    })
}

fn build() -> JobSnapshot {
    JobSnapshot { namespace: "ci".into(), uid: JOB.into(), ..JobSnapshot::default() }
}

fn limits(per_container: u64, per_job: u64) -> Logs {
    Logs {
        max_bytes_per_container: Bytes(per_container),
        max_bytes_per_job: Bytes(per_job),
        ..Logs::default()
    }
}

fn track(tracker: &PodTracker, pod: Value, log: &[u8]) {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let uid = pod.uid().unwrap();
    tracker.upsert(JOB, &pod);
    let run = format!("containerd://{uid}");
    let _token = tracker.begin_capture(&uid, &run).unwrap();
    assert!(tracker.reserve(&uid, &run, log.len(), 1 << 20));
    let excerpt = LogExcerpt { head: log.to_vec(), length: log.len() as u64, ..LogExcerpt::default() };
    tracker.end_capture(&uid, &run, Ok(EarlyLog { excerpt, ..EarlyLog::default() }));
    tracker.mark_deleted(&uid, None);
}

/// Name, text, and reason for the loss of each pod's log, in order.
fn summary(captured: &CapturedPods) -> Vec<(&str, String, Option<&str>)> {
    let one = |pod: &'_ CapturedPod| {
        let mut text = Vec::new();
        pod.logs[0].excerpt.write_to(&mut text);
        String::from_utf8(text).unwrap()
    };
    let all = captured.pods.iter();
    all.map(|pod| (pod.facts.name.as_str(), one(pod), pod.logs[0].lost.as_ref().map(LogLoss::reason)))
        .collect()
}

#[tokio::test]
async fn existing_and_deleted_pods_are_collected_the_most_relevant_first() {
    let apiserver = Apiserver::default();
    for (name, phase, minute) in [("well", "Succeeded", 3), ("old", "Failed", 1), ("new", "Failed", 2)] {
        apiserver.put("pods", pod(name, phase, minute));
        apiserver.put_log(name, "main", name.as_bytes());
    }
    let mut foreign = pod("foreign", "Failed", 5);
    foreign["metadata"]["ownerReferences"][0]["uid"] = "another".into();
    apiserver.put("pods", foreign);
    let tracker = PodTracker::default();
    track(&tracker, pod("deleted", "Running", 4), b"early");
    let collector = Collector::new(apiserver.client());
    let (captured, _memory) = collector.collect(&build(), &limits(100, 1000), &tracker).await.unwrap();
    assert_eq!(
        summary(&captured),
        [
            ("new", "new".to_owned(), None),
            ("old", "old".to_owned(), None),
            ("deleted", "early".to_owned(), None),
            ("well", "well".to_owned(), None)
        ]
    );
    assert!(captured.pods[2].facts.gone);
    assert_eq!(captured.pods[0].facts.containers[0].logs[0].length, 3);
}

#[tokio::test]
async fn less_relevant_logs_are_left_out_once_the_budget_is_used_up() {
    let apiserver = Apiserver::default();
    apiserver.put("pods", pod("new", "Failed", 2));
    apiserver.put_log("new", "main", b"0123456789");
    let tracker = PodTracker::default();
    track(&tracker, pod("deleted", "Running", 1), b"early");
    let collector = Collector::new(apiserver.client());
    let (captured, _memory) = collector.collect(&build(), &limits(10, 10), &tracker).await.unwrap();
    let logs = summary(&captured);
    assert_eq!(logs[0], ("new", "0123456789".to_owned(), None));
    let left_out = &captured.pods[1].logs[0];
    assert_eq!(left_out.lost, Some(LogLoss::OverBudget));
    assert_eq!((left_out.facts().lost, left_out.facts().truncated), (None, true));
}

#[tokio::test]
async fn without_logs_only_states_are_collected() {
    let apiserver = Apiserver::default();
    apiserver.put("pods", pod("new", "Failed", 2));
    let without = Logs { mode: LogsMode::None, ..Logs::default() };
    let collector = Collector::new(apiserver.client());
    let (captured, _memory) = collector.collect(&build(), &without, &PodTracker::default()).await.unwrap();
    assert_eq!(captured.pods.len(), 1);
    assert!(captured.pods[0].logs.is_empty() && captured.pods[0].facts.containers[0].logs.is_empty());
}

/// The log of one pod arrives only in the slow lane, and its memory is released with the permit.
#[tokio::test(start_paused = true)]
async fn a_slow_log_is_read_in_the_slow_lane() {
    let apiserver = Apiserver::default();
    for name in ["fast", "slow"] {
        apiserver.put("pods", pod(name, "Failed", 2));
        apiserver.put_log(name, "main", name.as_bytes());
    }
    let client = apiserver.slow_client(|_, path| match path.contains("/slow/log") {
        true => std::time::Duration::from_secs(2),
        false => std::time::Duration::ZERO,
    });
    let collector = Collector::new(client);
    let (captured, memory) =
        collector.collect(&build(), &limits(100, 1000), &PodTracker::default()).await.unwrap();
    let logs = summary(&captured);
    assert!(logs.contains(&("slow", "slow".to_owned(), None)), "{logs:?}");
    assert!(logs.contains(&("fast", "fast".to_owned(), None)), "{logs:?}");
    assert!(captured.pods.iter().all(|pod| !pod.logs[0].deferred));
    drop(memory);
}

/// A log that was captured in part is used if reading it again fails.
#[tokio::test]
async fn a_partial_early_log_is_better_than_none() {
    let apiserver = Apiserver::default();
    let tracker = PodTracker::default();
    let existing = pod("new", "Failed", 2);
    apiserver.put("pods", existing.clone());
    let pod: Pod = serde_json::from_value(existing).unwrap();
    tracker.upsert(JOB, &pod);
    let run = "containerd://new";
    let _token = tracker.begin_capture("new", run).unwrap();
    assert!(tracker.reserve("new", run, 4, 1 << 20));
    let excerpt = LogExcerpt { head: b"part".to_vec(), length: 4, ..LogExcerpt::default() };
    let part = EarlyLog { excerpt, lost: Some("stopped".into()), truncated: false };
    tracker.end_capture("new", run, Ok(part));
    let collector = Collector::new(apiserver.client());
    let (captured, _memory) = collector.collect(&build(), &limits(100, 1000), &tracker).await.unwrap();
    assert_eq!(summary(&captured), [("new", "part".to_owned(), Some("stopped"))]);
}

/// The part of a log that was captured early does not make it final that the node is silent now.
#[tokio::test(start_paused = true)]
async fn a_partial_log_of_a_silent_node_may_be_read_later() {
    let apiserver = Apiserver::default();
    let existing = pod("new", "Failed", 2);
    apiserver.put("pods", existing.clone());
    apiserver.put_log("new", "main", b"all of it");
    let tracker = PodTracker::default();
    let pod: Pod = serde_json::from_value(existing).unwrap();
    tracker.upsert(JOB, &pod);
    let run = "containerd://new";
    let _token = tracker.begin_capture("new", run).unwrap();
    assert!(tracker.reserve("new", run, 4, 1 << 20));
    let excerpt = LogExcerpt { head: b"part".to_vec(), length: 4, ..LogExcerpt::default() };
    tracker.end_capture("new", run, Ok(EarlyLog { excerpt, lost: Some("stopped".into()), truncated: false }));
    let silent = apiserver.slow_client(|_, path| match path.ends_with("/log") {
        true => std::time::Duration::from_secs(1_000),
        false => std::time::Duration::ZERO,
    });
    let (captured, _memory) =
        Collector::new(silent).collect(&build(), &limits(100, 1000), &tracker).await.unwrap();
    assert_eq!(summary(&captured), [("new", "part".to_owned(), Some("stopped"))]);
    let pending = captured.pending_logs().unwrap();
    assert_eq!((pending.reason.as_str(), pending.may_exist), ("log of new/main: stopped", true));
    drop(captured);
    let (captured, _memory) =
        Collector::new(apiserver.client()).collect(&build(), &limits(100, 1000), &tracker).await.unwrap();
    assert_eq!(summary(&captured), [("new", "all of it".to_owned(), None)]);
    assert_eq!(captured.pending_logs(), None);
}

/// What was read is not read again, and survives its pod.
#[tokio::test(start_paused = true)]
async fn logs_that_were_kept_for_a_later_harvest_outlive_their_pods() {
    let apiserver = Apiserver::default();
    let tracker = PodTracker::default();
    for (name, minute) in [("silent", 1), ("well", 2)] {
        let pod = pod(name, "Failed", minute);
        apiserver.put("pods", pod.clone());
        tracker.upsert(JOB, &serde_json::from_value(pod).unwrap());
        apiserver.put_log(name, "main", name.as_bytes());
    }
    for _ in 0..3 {
        apiserver.refuse_once(http::Method::GET, "/silent/log", 500);
    }
    let collector = Collector::new(apiserver.client());
    let with = limits(100, 1000);
    let (captured, _memory) = collector.collect(&build(), &with, &tracker).await.unwrap();
    assert!(captured.pending_logs().unwrap().reason.starts_with("log of silent/main: "));
    tracker.keep_logs(captured.pods, with.per_job());
    apiserver.remove("pods", "ci", "well");
    tracker.mark_deleted("well", None);
    let (captured, _memory) = collector.collect(&build(), &with, &tracker).await.unwrap();
    assert_eq!(
        summary(&captured),
        [("silent", "silent".to_owned(), None), ("well", "well".to_owned(), None)]
    );
}
