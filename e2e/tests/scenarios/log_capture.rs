//! Results of Jobs whose pods are deleted before the Job finishes, and their logs with them, as on a real node.

use std::time::Duration;

use job_handler_e2e::wait_for;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, scenario};

/// Slack for a loaded machine; the conditions take ten seconds on an idle one.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Writes a numbered line every 100 ms, and continues for a moment after SIGTERM, like real processes.
const TICKS: [(&str, &str); 3] = [("end", "Hang"), ("log-every", "100ms"), ("termination-delay", "2s")];

/// A namespace whose policy requests results.
async fn harvested_namespace(fixture: &Fixture, name: &str) -> job_handler_e2e::TestNamespace {
    let namespace = fixture.cluster.namespace(name).await.unwrap();
    fixture.apply_policy(&namespace, "results", json!({"results": {}})).await;
    namespace
}

/// A Job with `spec` merged into its spec.
fn job_with_spec(name: &str, simulation: &[(&str, &str)], spec: Value) -> Value {
    let mut job = job(name, &[], simulation);
    merge(&mut job["spec"], &spec);
    job
}

fn merge(into: &mut Value, from: &Value) {
    match (into.as_object_mut(), from.as_object()) {
        (Some(object), Some(from)) => {
            for (key, value) in from {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        _ => *into = from.clone(),
    }
}

struct Stored {
    manifest: Value,
    logs: String,
}

impl Stored {
    fn of(map: &ConfigMap) -> Self {
        let data = map.data.as_ref().unwrap();
        Self {
            manifest: serde_json::from_str(&data["result.json"]).unwrap(),
            logs: data.get("logs").cloned().unwrap_or_default(),
        }
    }

    fn pods(&self) -> &[Value] {
        self.manifest["pods"].as_array().unwrap()
    }

    fn lost(&self) -> String {
        self.manifest["completeness"]["lost"].to_string()
    }
}

async fn result(fixture: &Fixture, namespace: &str, job: &str) -> Stored {
    let (api, name) = (fixture.config_maps(namespace), format!("{job}-results"));
    let poll = || async { api.get(&name).await.map_err(|e| e.to_string()) };
    Stored::of(&wait_for(TIMEOUT, &format!("the result {namespace}/{name}"), poll).await.unwrap())
}

fn pods(fixture: &Fixture, namespace: &str) -> Api<Pod> {
    Api::namespaced(fixture.client(), namespace)
}

/// Waits until this number of pods of a Job run, and returns their names.
async fn wait_running(fixture: &Fixture, namespace: &str, job: &str, number: usize) -> Vec<String> {
    let api = pods(fixture, namespace);
    let of_job = ListParams::default().labels(&format!("job-name={job}"));
    let poll = || async {
        let all = api.list(&of_job).await.map_err(|e| e.to_string())?.items;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        let names: Vec<_> = all
            .iter()
            .filter(|p| phase(p).as_deref() == Some("Running"))
            .map(ResourceExt::name_any)
            .collect();
        if names.len() == number { Ok(names) } else { Err(format!("{names:?}")) }
    };
    wait_for(TIMEOUT, &format!("{number} pods of {job} to run"), poll).await.unwrap()
}

/// Waits until a pod has written ten lines, which could be lost.
async fn wait_ten_lines(fixture: &Fixture, namespace: &str, pod: &str) {
    let poll = || async {
        let log = pods(fixture, namespace).logs(pod, &Default::default()).await.map_err(|e| e.to_string())?;
        if log.contains("tick 10\n") { Ok(()) } else { Err(log) }
    };
    wait_for(TIMEOUT, &format!("{pod} to write"), poll).await.unwrap();
}

/// Asserts that the log of a terminated process has all of its numbered lines.
fn assert_complete(logs: &str) {
    let lines: Vec<_> = logs.lines().filter(|line| line.contains("tick ")).collect();
    let (last, others) = lines.split_last().unwrap_or_else(|| panic!("no line at all: {logs}"));
    for (n, line) in others.iter().enumerate() {
        assert_eq!(*line, format!("tick {}", n + 1), "{logs}");
    }
    assert_eq!(*last, format!("SIGTERM after tick {}", others.len()), "{logs}");
    assert!(others.len() >= 10, "{logs}");
}

fn assert_failed(stored: &Stored, reason: &str) {
    assert_eq!((&stored.manifest["outcome"], &stored.manifest["reason"]), (&json!("failed"), &json!(reason)));
}

#[test]
fn the_log_of_a_job_past_its_deadline_has_the_last_line() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "deadline").await;
        let deadline = json!({"activeDeadlineSeconds": 4, "parallelism": 2, "completions": 2});
        fixture.create(&ns, &job_with_spec("late", &TICKS, deadline)).await.unwrap();
        let stored = result(fixture, &ns, "late").await;
        assert_failed(&stored, "DeadlineExceeded");
        assert_eq!(stored.pods().len(), 2, "{}", stored.manifest);
        assert!(
            stored.pods().iter().all(|pod| pod["gone"] == true),
            "the pods are deleted: {}",
            stored.manifest
        );
        let sections: Vec<_> = stored.logs.split("=== Pod: ").skip(1).collect();
        assert_eq!(sections.len(), 2, "{}", stored.logs);
        sections.into_iter().for_each(assert_complete);
        assert_eq!(stored.manifest["completeness"]["complete"], true, "{}", stored.lost());
    });
}

#[test]
fn logs_that_cannot_be_read_are_listed_as_lost() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "lost").await;
        // The first pod never had a log; log requests for the second hang.
        let simulations: &[&[(&str, &str)]] = &[
            &[("end", "Hang"), ("log", "x"), ("log-gone", "true")],
            &[("end", "Hang"), ("log", "x"), ("log-hang", "true")],
        ];
        for (n, simulation) in simulations.iter().enumerate() {
            fixture
                .create(
                    &ns,
                    &job_with_spec(&format!("lost-{n}"), simulation, json!({"activeDeadlineSeconds": 2})),
                )
                .await
                .unwrap();
        }
        for n in 0..simulations.len() {
            let stored = result(fixture, &ns, &format!("lost-{n}")).await;
            assert_failed(&stored, "DeadlineExceeded");
            let lost = &stored.pods()[0]["containers"][0]["logs"][0]["lost"];
            assert!(lost.as_str().is_some_and(|reason| reason.len() > 10), "{}", stored.manifest);
            assert!(stored.logs.contains("[lost: "), "{}", stored.logs);
            assert!(stored.lost().contains("log of lost-"), "{}", stored.lost());
        }
    });
}

#[test]
fn restarts_past_the_limit_leave_the_last_two_attempts() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "restarts").await;
        let simulation = [
            ("run", "1s"),
            ("exit-code", "3"),
            ("restarts", "9"),
            ("log", "a line\n"),
            ("termination-delay", "1s"),
        ];
        let spec = json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}});
        fixture.create(&ns, &job_with_spec("again", &simulation, spec)).await.unwrap();
        let stored = result(fixture, &ns, "again").await;
        assert_failed(&stored, "BackoffLimitExceeded");
        let container = &stored.pods()[0]["containers"][0];
        assert!(container["restartCount"].as_i64() >= Some(2), "{container}");
        assert_eq!(container["lastState"]["exitCode"], 3);
        let restarts = container["restartCount"].as_i64().unwrap();
        for (section, attempt) in
            [(" (previous) ===\n", restarts), (" / Container: main ===\n", restarts + 1)]
        {
            let log =
                stored.logs.split(section).nth(1).unwrap_or_else(|| panic!("{section}: {}", stored.logs));
            assert!(log.starts_with(&format!("attempt {attempt}\na line\n")), "{}", stored.logs);
        }
    });
}

#[test]
fn logs_of_pods_ended_by_a_failure_policy_are_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "failurepolicy").await;
        // Index 0 fails with a code that fails the Job, while the other index still writes.
        let mut fail = job_with_spec(
            "fail",
            &TICKS,
            json!({
                "completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 6,
                "podFailurePolicy": {"rules": [
                    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                ]},
            }),
        );
        fixture.create(&ns, &fail).await.unwrap();
        let names = wait_running(fixture, &ns, "fail", 2).await;
        for name in &names {
            wait_ten_lines(fixture, &ns, name).await;
        }
        end(fixture, &ns, &names[0], 42).await;
        let stored = result(fixture, &ns, "fail").await;
        assert_failed(&stored, "PodFailurePolicy");
        let section_of =
            |name: &str| stored.logs.split("=== Pod: ").find(|s| s.starts_with(name)).map(str::to_owned);
        assert_complete(&section_of(&names[1]).unwrap());
        assert!(section_of(&names[0]).unwrap().contains("tick 10\n"));
        assert_eq!(stored.pods().len(), 2);
        let decisive = stored.manifest["decisive"].as_str().unwrap();
        assert!(decisive.contains("exit code 42"), "{decisive}");

        // An ignored disruption does not fail the Job: its pod is replaced, and its log is stored.
        fail["metadata"]["name"] = json!("ignore");
        fixture.create(&ns, &fail).await.unwrap();
        let names = wait_running(fixture, &ns, "ignore", 2).await;
        wait_ten_lines(fixture, &ns, &names[0]).await;
        pods(fixture, &ns).evict(&names[0], &EvictParams::default()).await.unwrap();
        wait_pod_deleted(fixture, &ns, &names[0]).await;
        let names_after = wait_running(fixture, &ns, "ignore", 2).await;
        assert!(!names_after.contains(&names[0]));
        for name in &names_after {
            end(fixture, &ns, name, 0).await;
        }
        let stored = result(fixture, &ns, "ignore").await;
        assert_eq!(stored.manifest["outcome"], "completed");
        let evicted = stored.pods().iter().find(|pod| pod["name"] == names[0]).unwrap();
        assert_eq!(
            (&evicted["gone"], &evicted["disruption"]),
            (&json!(true), &json!("EvictionByEvictionAPI"))
        );
        assert_complete(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&names[0])).unwrap());
        assert_eq!(stored.pods().len(), 3);
    });
}

/// Ends a pod's only container with this code.
async fn end(fixture: &Fixture, namespace: &str, name: &str, code: i32) {
    let api = pods(fixture, namespace);
    let pod = api.get(name).await.unwrap();
    let mut statuses = serde_json::to_value(&pod.status.unwrap().container_statuses).unwrap();
    let id = statuses[0]["containerID"].clone();
    let started = statuses[0]["state"]["running"]["startedAt"].clone();
    // Not before the time of its last line.
    let round_up = jiff::TimestampRound::new().smallest(jiff::Unit::Second).mode(jiff::RoundMode::Ceil);
    let now = jiff::Timestamp::now().round(round_up).unwrap().to_string();
    let reason = if code == 0 { "Completed" } else { "Error" };
    statuses[0]["state"] = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started,
        "finishedAt": now, "containerID": id}});
    statuses[0]["ready"] = json!(false);
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let status = json!({"status": {"phase": phase, "containerStatuses": statuses}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

async fn wait_pod_deleted(fixture: &Fixture, namespace: &str, pod: &str) {
    let poll = || async {
        match pods(fixture, namespace).get_opt(pod).await {
            Ok(None) => Ok(()),
            Ok(Some(pod)) => Err(format!("{:?}", pod.metadata.deletion_timestamp)),
            Err(error) => Err(error.to_string()),
        }
    };
    wait_for(TIMEOUT, &format!("pod {pod} to be deleted"), poll).await.unwrap();
}

#[test]
fn logs_of_pods_ended_by_a_success_policy_are_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "success").await;
        let spec = json!({
            "completionMode": "Indexed", "completions": 3, "parallelism": 3,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        });
        fixture.create(&ns, &job_with_spec("leader", &TICKS, spec)).await.unwrap();
        let names = wait_running(fixture, &ns, "leader", 3).await;
        for name in &names {
            wait_ten_lines(fixture, &ns, name).await;
        }
        let (first, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.starts_with("leader-0-"));
        end(fixture, &ns, &first[0], 0).await;
        let stored = result(fixture, &ns, "leader").await;
        assert_eq!(
            (&stored.manifest["outcome"], &stored.manifest["reason"]),
            (&json!("completed"), &json!("SuccessPolicy"))
        );
        for name in others {
            assert_complete(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&name)).unwrap());
        }
        assert_eq!(stored.manifest["completeness"]["complete"], true, "{}", stored.lost());
    });
}

#[test]
fn a_job_suspended_while_it_runs_keeps_its_earlier_logs() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "pause").await;
        fixture.create(&ns, &job_with_spec("pause", &TICKS, json!({}))).await.unwrap();
        let first = wait_running(fixture, &ns, "pause", 1).await.remove(0);
        wait_ten_lines(fixture, &ns, &first).await;
        let set = async |suspend: bool| {
            let patch = json!({"spec": {"suspend": suspend}});
            fixture.jobs(&ns).patch("pause", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        };
        set(true).await;
        wait_pod_deleted(fixture, &ns, &first).await;
        set(false).await;
        let second = wait_running(fixture, &ns, "pause", 1).await.remove(0);
        wait_ten_lines(fixture, &ns, &second).await;
        end(fixture, &ns, &second, 0).await;
        let stored = result(fixture, &ns, "pause").await;
        assert_eq!(stored.pods().len(), 2);
        let section_of = |name: &str| stored.logs.split("=== Pod: ").find(|s| s.starts_with(name)).unwrap();
        assert_complete(section_of(&first));
        assert!(section_of(&second).contains("done after tick"), "{}", stored.logs);
    });
}

#[test]
fn pods_deleted_by_hand_or_evicted_are_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "byhand").await;
        let spec = json!({"backoffLimit": 3});
        for name in ["deleted", "evicted"] {
            fixture.create(&ns, &job_with_spec(name, &TICKS, spec.clone())).await.unwrap();
        }
        for name in ["deleted", "evicted"] {
            let first = wait_running(fixture, &ns, name, 1).await.remove(0);
            wait_ten_lines(fixture, &ns, &first).await;
            if name == "deleted" {
                pods(fixture, &ns).delete(&first, &DeleteParams::default()).await.unwrap();
            } else {
                pods(fixture, &ns).evict(&first, &EvictParams::default()).await.unwrap();
            }
            wait_pod_deleted(fixture, &ns, &first).await;
            let second = wait_running(fixture, &ns, name, 1).await.remove(0);
            end(fixture, &ns, &second, 0).await;
            let stored = result(fixture, &ns, name).await;
            assert_eq!(stored.manifest["outcome"], "completed");
            let deleted = stored.pods().iter().find(|pod| pod["name"] == first).unwrap();
            assert_eq!(deleted["gone"], true);
            assert_complete(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&first)).unwrap());
        }
        // The kubelet evicts a pod and deletes its containers' logs.
        let simulation = [("run", "2s"), ("end", "Evicted"), ("log", "x\n")];
        fixture
            .create(&ns, &job_with_spec("pressed", &simulation, json!({"backoffLimit": 0})))
            .await
            .unwrap();
        let stored = result(fixture, &ns, "pressed").await;
        assert_eq!(stored.manifest["cause"], "evicted");
        assert!(stored.lost().contains("unable to retrieve container logs"), "{}", stored.lost());
    });
}

#[test]
fn jobs_of_a_deleted_node_report_their_lost_logs() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "nodegone").await;
        let nodes: Api<Node> = Api::all(fixture.client());
        let name = format!("{}-node", &*ns);
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let on_it = json!({"backoffLimit": 0, "template": {"spec": {"nodeName": name}}});
        fixture.create(&ns, &job_with_spec("stranded", &TICKS, on_it)).await.unwrap();
        let pod = wait_running(fixture, &ns, "stranded", 1).await.remove(0);
        wait_ten_lines(fixture, &ns, &pod).await;
        nodes.delete(&name, &DeleteParams::default()).await.unwrap();
        // The pod garbage collector gives a node 40 s to come back.
        let stored = result(fixture, &ns, "stranded").await;
        assert_failed(&stored, "BackoffLimitExceeded");
        assert_eq!(stored.pods()[0]["disruption"], "DeletionByPodGC", "{}", stored.manifest);
        assert_eq!(stored.manifest["cause"], "evicted");
        assert!(stored.lost().contains(&format!("log of {pod}/main")), "{}", stored.lost());
    });
}

#[test]
fn pods_that_never_ran_have_their_reason_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "never").await;
        let deadline = json!({"activeDeadlineSeconds": 2});
        let waiting = [("waiting-reason", "ImagePullBackOff"), ("waiting-message", "no such image")];
        fixture.create(&ns, &job_with_spec("image", &waiting, deadline.clone())).await.unwrap();
        let config = [
            ("waiting-reason", "CreateContainerConfigError"),
            ("waiting-message", "secret \"db\" not found"),
        ];
        fixture.create(&ns, &job_with_spec("config", &config, deadline.clone())).await.unwrap();
        let mut nowhere = job_with_spec("nowhere", &[], deadline.clone());
        nowhere["spec"]["template"]["spec"]["nodeSelector"] = json!({"no-such": "label"});
        fixture.create(&ns, &nowhere).await.unwrap();
        fixture.create(&ns, &job_with_spec("slow", &[("start-delay", "1h")], deadline)).await.unwrap();
        fixture
            .create(&ns, &job_with_spec("none", &[], json!({"completions": 0, "parallelism": 0})))
            .await
            .unwrap();
        for (name, text) in [
            ("image", "never started, ImagePullBackOff: no such image"),
            ("config", "never started, CreateContainerConfigError: secret \"db\" not found"),
            ("nowhere", "was never scheduled: "),
        ] {
            let stored = result(fixture, &ns, name).await;
            assert_failed(&stored, "DeadlineExceeded");
            let decisive = stored.manifest["decisive"].as_str().unwrap();
            assert!(decisive.contains(text), "{name}: {}", stored.manifest);
            let event = fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", name).await.pop().ok_or("none")
                })
                .await;
            assert!(event.note.unwrap().contains(text), "{name}");
            assert_eq!(stored.pods().len(), 1, "{}", stored.manifest);
            assert!(
                stored.pods()[0]["containers"][0]["logs"].is_null(),
                "the container wrote no log: {}",
                stored.manifest
            );
        }
        let stored = result(fixture, &ns, "slow").await;
        assert_failed(&stored, "DeadlineExceeded");
        assert_eq!(stored.pods().len(), 1, "{}", stored.manifest);
        assert!(stored.pods()[0]["containers"][0]["logs"].is_null(), "{}", stored.manifest);
        let stored = result(fixture, &ns, "none").await;
        assert_eq!((&stored.manifest["outcome"], stored.pods().len()), (&json!("completed"), 0));
        assert_eq!(stored.manifest["completeness"]["complete"], true);
    });
}

#[test]
fn every_container_of_a_deleted_pod_is_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvested_namespace(fixture, "crowd").await;
        let simulation = [("end", "Hang"), ("log", "a line\n"), ("termination-delay", "2s")];
        let spec = json!({"activeDeadlineSeconds": 3, "template": {"spec": {
            "initContainers": [
                {"name": "prepare", "image": "busybox"},
                {"name": "proxy", "image": "busybox", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "main", "image": "busybox"}, {"name": "helper", "image": "busybox"}],
        }}});
        fixture.create(&ns, &job_with_spec("crowd", &simulation, spec)).await.unwrap();
        let stored = result(fixture, &ns, "crowd").await;
        assert_failed(&stored, "DeadlineExceeded");
        assert_eq!(stored.pods()[0]["gone"], true);
        let containers = stored.pods()[0]["containers"].as_array().unwrap();
        let kinds: Vec<_> =
            containers.iter().map(|c| (c["name"].as_str().unwrap(), c["kind"].as_str().unwrap())).collect();
        assert_eq!(kinds, [("prepare", "init"), ("proxy", "sidecar"), ("main", "main"), ("helper", "main")]);
        for (name, _) in kinds {
            let section = format!("/ Container: {name} ===\na line\n");
            assert!(stored.logs.contains(&section), "{name}: {}", stored.logs);
        }
        assert_eq!(stored.manifest["completeness"]["complete"], true, "{}", stored.lost());
    });
}
