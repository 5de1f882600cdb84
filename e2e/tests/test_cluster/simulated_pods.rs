//! Simulated pods follow their annotations, and the real Job controller reacts to them.

use std::time::Duration;

use job_handler_e2e::cluster::jobs::{clock, finished, in_phase, job};
use job_handler_e2e::{Cluster, wait_for};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// A Job and the pod it ended with.
struct FinishedPod {
    outcome: (String, String),
    pod: Pod,
}

async fn run(name: &str, pod: &[(&str, &str)], change: impl FnOnce(&mut serde_json::Value)) -> FinishedPod {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace(name).await.unwrap();
    let mut value = serde_json::to_value(job(name, pod)).unwrap();
    value["spec"]["backoffLimit"] = json!(0);
    change(&mut value);
    let created: Job = serde_json::from_value(value).unwrap();
    cluster.create_job(&namespace, &created).await.unwrap();
    let job = cluster.wait_job_finished(&namespace, name, SOON).await.unwrap();
    let pod = cluster.pods_of(&namespace, name).await.unwrap().pop().expect("the Job has its pod");
    FinishedPod { outcome: finished(&job).unwrap(), pod }
}

fn status<'a>(pod: &'a Pod, container: &str) -> &'a ContainerStatus {
    let status = pod.status.as_ref().unwrap();
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|status| status.name == container).unwrap()
}

fn terminated<'a>(pod: &'a Pod, container: &str) -> &'a ContainerStateTerminated {
    status(pod, container).state.as_ref().unwrap().terminated.as_ref().unwrap()
}

fn strings(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[tokio::test]
async fn a_pod_runs_for_the_given_time_and_succeeds() {
    let finished_pod =
        run("short", &[("run", "1500ms"), ("termination-message", "all is well")], |_| {}).await;
    assert_eq!(finished_pod.outcome, strings("Complete", "CompletionsReached"));
    let end = terminated(&finished_pod.pod, "main");
    assert_eq!((end.exit_code, end.reason.as_deref()), (0, Some("Completed")));
    assert_eq!(end.message.as_deref(), Some("all is well"));
    let clock = clock(&finished_pod.pod).unwrap();
    let time = |key: &str| clock[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let ran = time("ended").duration_since(time("started")).as_millis();
    assert!((1500..10_000).contains(&ran), "ran {ran} ms");
}

#[tokio::test]
async fn a_container_exits_with_the_given_code() {
    let finished_pod = run("fails", &[("run", "0s"), ("exit-code", "3")], |_| {}).await;
    assert_eq!(finished_pod.outcome, strings("Failed", "BackoffLimitExceeded"));
    let end = terminated(&finished_pod.pod, "main");
    assert_eq!((end.exit_code, end.reason.as_deref()), (3, Some("Error")));
    assert_eq!(in_phase("Failed")(&finished_pod.pod), Ok(()));
}

#[tokio::test]
async fn a_container_is_oom_killed() {
    let finished_pod = run("oom", &[("run", "0s"), ("end", "OOMKilled")], |_| {}).await;
    let end = terminated(&finished_pod.pod, "main");
    assert_eq!((end.exit_code, end.reason.as_deref()), (137, Some("OOMKilled")));
}

#[tokio::test]
async fn a_pod_is_evicted() {
    let finished_pod = run("evicted", &[("run", "0s"), ("end", "Evicted")], |_| {}).await;
    let status = finished_pod.pod.status.as_ref().unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert!(status.message.as_ref().unwrap().contains("low on resource: memory"));
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(condition.reason.as_deref(), Some("TerminationByKubelet"));
    assert_eq!(terminated(&finished_pod.pod, "main").exit_code, 137);
}

#[tokio::test]
async fn a_hanging_pod_is_deleted_at_the_deadline() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("hang").await.unwrap();
    let mut created = job("hang", &[("end", "Hang")]);
    created.spec.as_mut().unwrap().active_deadline_seconds = Some(2);
    cluster.create_job(&namespace, &created).await.unwrap();
    let done = cluster.wait_job_finished(&namespace, "hang", SOON).await.unwrap();
    assert_eq!(finished(&done).unwrap(), strings("Failed", "DeadlineExceeded"));
    wait_for(SOON, "the pod to be deleted", || async {
        let pods = cluster.pods_of(&namespace, "hang").await.map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_container_is_restarted_as_often_as_given_and_succeeds() {
    let pod = [("run", "100ms"), ("restarts", "2"), ("termination-message", "again")];
    let finished_pod = run("restarts", &pod, |job| {
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
        job["spec"]["backoffLimit"] = json!(5);
    })
    .await;
    assert_eq!(finished_pod.outcome, strings("Complete", "CompletionsReached"));
    let status = status(&finished_pod.pod, "main");
    assert_eq!(status.restart_count, 2);
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_ne!(last.container_id, terminated(&finished_pod.pod, "main").container_id);
}

#[tokio::test]
async fn a_job_fails_after_restarts_past_the_backoff_limit() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("backoff").await.unwrap();
    let mut value = serde_json::to_value(job("backoff", &[("run", "50ms"), ("exit-code", "9")])).unwrap();
    value["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    value["spec"]["backoffLimit"] = json!(2);
    cluster.create_job(&namespace, &serde_json::from_value(value).unwrap()).await.unwrap();
    let done = cluster.wait_job_finished(&namespace, "backoff", SOON).await.unwrap();
    assert_eq!(finished(&done).unwrap(), strings("Failed", "BackoffLimitExceeded"));
}

#[tokio::test]
async fn a_container_that_never_starts_waits_with_its_reason() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("never").await.unwrap();
    let pod = [("waiting-reason", "ImagePullBackOff"), ("waiting-message", "no such image")];
    cluster.create_job(&namespace, &job("never", &pod)).await.unwrap();
    let pod = cluster
        .wait_pod_of(&namespace, "never", SOON, |pod| {
            let waiting = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let waiting = waiting.filter_map(|status| status.state.as_ref()?.waiting.clone()).next();
            waiting.map(drop).ok_or_else(|| "no container waits".to_owned())
        })
        .await
        .unwrap();
    let waiting = status(&pod, "main").state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ImagePullBackOff"));
    assert_eq!(waiting.message.as_deref(), Some("no such image"));
    assert_eq!(in_phase("Pending")(&pod), Ok(()));
}

#[tokio::test]
async fn a_pod_that_fits_no_node_is_unschedulable() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("nowhere").await.unwrap();
    let mut value = serde_json::to_value(job("nowhere", &[])).unwrap();
    value["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "none-has-this"});
    cluster.create_job(&namespace, &serde_json::from_value(value).unwrap()).await.unwrap();
    cluster
        .wait_pod_of(&namespace, "nowhere", SOON, |pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut reasons = conditions.filter_map(|condition| condition.reason.as_deref());
            reasons
                .find(|reason| *reason == "Unschedulable")
                .map(drop)
                .ok_or_else(|| "it is scheduled".to_owned())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn one_of_several_containers_can_fail() {
    let finished_pod = run(
        "several",
        &[("run", "1s"), ("exit-code", "7"), ("container", "second"), ("init-run", "300ms")],
        |job| {
            job["spec"]["template"]["spec"]["containers"] =
                json!([{"name": "first", "image": "a"}, {"name": "second", "image": "b"}]);
            job["spec"]["template"]["spec"]["initContainers"] = json!([
                {"name": "sidecar", "image": "s", "restartPolicy": "Always"},
                {"name": "prepare", "image": "p"},
            ]);
        },
    )
    .await;
    assert_eq!(finished_pod.outcome, strings("Failed", "BackoffLimitExceeded"));
    let codes =
        ["first", "second", "sidecar", "prepare"].map(|name| terminated(&finished_pod.pod, name).exit_code);
    assert_eq!(codes, [0, 7, 0, 0]);
}

#[tokio::test]
async fn an_init_container_can_fail() {
    let finished_pod = run("init", &[("init-exit-code", "4")], |job| {
        job["spec"]["template"]["spec"]["initContainers"] = json!([{"name": "prepare", "image": "p"}]);
    })
    .await;
    assert_eq!(terminated(&finished_pod.pod, "prepare").exit_code, 4);
    let waiting = status(&finished_pod.pod, "main").state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

#[tokio::test]
async fn a_deleted_pod_exits_after_its_termination_delay() {
    let cluster = Cluster::shared().await.unwrap();
    let namespace = cluster.namespace("slow-end").await.unwrap();
    cluster
        .create_job(&namespace, &job("slow-end", &[("end", "Hang"), ("termination-delay", "3s")]))
        .await
        .unwrap();
    let pod = cluster.wait_pod_of(&namespace, "slow-end", SOON, in_phase("Running")).await.unwrap();
    let name = pod.metadata.name.unwrap();
    let started = std::time::Instant::now();
    cluster.kubectl(&["-n", &namespace, "delete", "pod", &name, "--wait=false"]).await.unwrap();
    let phase =
        cluster.kubectl(&["-n", &namespace, "get", "pod", &name, "-o", "jsonpath={.status.phase}"]).await;
    assert_eq!(phase.unwrap(), "Running");
    wait_for(SOON, "the pod to be deleted", || async {
        match cluster.kubectl(&["-n", &namespace, "get", "pod", &name]).await {
            Err(error) if error.to_string().contains("not found") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    assert!(started.elapsed() >= Duration::from_secs(3), "deleted after {:?}", started.elapsed());
}
