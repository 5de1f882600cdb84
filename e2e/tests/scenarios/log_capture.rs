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

/// On a loaded machine, for what takes ten seconds by itself.
const LONG: Duration = Duration::from_secs(120);

/// Writes a numbered line every 100 ms, and continues for a moment after SIGTERM, like real processes.
const TICKS: [(&str, &str); 3] = [("end", "Hang"), ("log-every", "100ms"), ("termination-delay", "2s")];

/// A namespace where all results are asked for.
async fn harvest(fixture: &Fixture, name: &str) -> job_handler_e2e::TestNamespace {
    let namespace = fixture.cluster.namespace(name).await.unwrap();
    fixture.apply_policy(&namespace, "results", json!({"results": {}})).await;
    namespace
}

/// A Job whose spec is `spec` on top.
fn with(name: &str, play: &[(&str, &str)], spec: Value) -> Value {
    let mut job = job(name, &[], play);
    json_patch(&mut job["spec"], &spec);
    job
}

fn json_patch(into: &mut Value, from: &Value) {
    match (into.as_object_mut(), from.as_object()) {
        (Some(object), Some(from)) => {
            for (key, value) in from {
                json_patch(object.entry(key).or_insert(Value::Null), value);
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
    let look = || async { api.get(&name).await.map_err(|e| e.to_string()) };
    Stored::of(&wait_for(LONG, &format!("the result {namespace}/{name}"), look).await.unwrap())
}

fn pods(fixture: &Fixture, namespace: &str) -> Api<Pod> {
    Api::namespaced(fixture.client(), namespace)
}

/// Waits until so many pods of a Job run; gives their names.
async fn running(fixture: &Fixture, namespace: &str, job: &str, number: usize) -> Vec<String> {
    let api = pods(fixture, namespace);
    let of_job = ListParams::default().labels(&format!("job-name={job}"));
    let look = || async {
        let all = api.list(&of_job).await.map_err(|e| e.to_string())?.items;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        let names: Vec<_> = all
            .iter()
            .filter(|p| phase(p).as_deref() == Some("Running"))
            .map(ResourceExt::name_any)
            .collect();
        if names.len() == number { Ok(names) } else { Err(format!("{names:?}")) }
    };
    wait_for(LONG, &format!("{number} pods of {job} to run"), look).await.unwrap()
}

/// Until a pod has written for a second, so that there is something to lose.
async fn written(fixture: &Fixture, namespace: &str, pod: &str) {
    let look = || async {
        let log = pods(fixture, namespace).logs(pod, &Default::default()).await.map_err(|e| e.to_string())?;
        if log.contains("tick 10\n") { Ok(()) } else { Err(log) }
    };
    wait_for(LONG, &format!("{pod} to write"), look).await.unwrap();
}

/// Asserts that the log of a process that was terminated has all of its numbered lines.
fn assert_whole(logs: &str) {
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
        let ns = harvest(fixture, "deadline").await;
        let deadline = json!({"activeDeadlineSeconds": 4, "parallelism": 2, "completions": 2});
        fixture.create(&ns, &with("late", &TICKS, deadline)).await.unwrap();
        let stored = result(fixture, &ns, "late").await;
        assert_failed(&stored, "DeadlineExceeded");
        assert_eq!(stored.pods().len(), 2, "{}", stored.manifest);
        assert!(stored.pods().iter().all(|pod| pod["gone"] == true), "they are gone: {}", stored.manifest);
        let sections: Vec<_> = stored.logs.split("=== Pod: ").skip(1).collect();
        assert_eq!(sections.len(), 2, "{}", stored.logs);
        sections.into_iter().for_each(assert_whole);
        assert_eq!(stored.manifest["completeness"]["complete"], true, "{}", stored.lost());
    });
}

#[test]
fn logs_that_cannot_be_read_are_listed_as_lost() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "lost").await;
        // It ends and is gone at once, its log has never been there, and another's node hangs.
        let gone: &[&[(&str, &str)]] = &[
            &[("end", "Hang"), ("log", "x"), ("log-gone", "true")],
            &[("end", "Hang"), ("log", "x"), ("log-hang", "true")],
        ];
        for (n, play) in gone.iter().enumerate() {
            fixture
                .create(&ns, &with(&format!("lost-{n}"), play, json!({"activeDeadlineSeconds": 2})))
                .await
                .unwrap();
        }
        for n in 0..gone.len() {
            let stored = result(fixture, &ns, &format!("lost-{n}")).await;
            assert_failed(&stored, "DeadlineExceeded");
            let lost = &stored.pods()[0]["containers"][0]["logs"][0]["lost"];
            assert!(lost.as_str().is_some_and(|why| why.len() > 10), "{}", stored.manifest);
            assert!(stored.logs.contains("[lost: "), "{}", stored.logs);
            assert!(stored.lost().contains("log of lost-"), "{}", stored.lost());
        }
    });
}

#[test]
fn restarts_past_the_limit_leave_the_last_two_attempts() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "restarts").await;
        let play = [
            ("run", "1s"),
            ("exit-code", "3"),
            ("restarts", "9"),
            ("log", "a line\n"),
            ("termination-delay", "1s"),
        ];
        let spec = json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}});
        fixture.create(&ns, &with("again", &play, spec)).await.unwrap();
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
        let ns = harvest(fixture, "failurepolicy").await;
        // Index 0 fails with a code that fails the Job, while the other index still writes.
        let mut fail = with(
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
        let names = running(fixture, &ns, "fail", 2).await;
        for name in &names {
            written(fixture, &ns, name).await;
        }
        end(fixture, &ns, &names[0], 42).await;
        let stored = result(fixture, &ns, "fail").await;
        assert_failed(&stored, "PodFailurePolicy");
        let of = |name: &str| stored.logs.split("=== Pod: ").find(|s| s.starts_with(name)).map(str::to_owned);
        assert_whole(&of(&names[1]).unwrap());
        assert!(of(&names[0]).unwrap().contains("tick 10\n"));
        assert_eq!(stored.pods().len(), 2);
        let decisive = stored.manifest["decisive"].as_str().unwrap();
        assert!(decisive.contains("exit code 42"), "{decisive}");

        // An ignored disruption does not fail the Job: its pod is replaced, and its log is stored.
        fail["metadata"]["name"] = json!("ignore");
        fixture.create(&ns, &fail).await.unwrap();
        let names = running(fixture, &ns, "ignore", 2).await;
        written(fixture, &ns, &names[0]).await;
        pods(fixture, &ns).evict(&names[0], &EvictParams::default()).await.unwrap();
        wait_gone(fixture, &ns, &names[0]).await;
        let names_after = running(fixture, &ns, "ignore", 2).await;
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
        assert_whole(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&names[0])).unwrap());
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
    // Not before what it has written.
    let up = jiff::TimestampRound::new().smallest(jiff::Unit::Second).mode(jiff::RoundMode::Ceil);
    let now = jiff::Timestamp::now().round(up).unwrap().to_string();
    let reason = if code == 0 { "Completed" } else { "Error" };
    statuses[0]["state"] = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started,
        "finishedAt": now, "containerID": id}});
    statuses[0]["ready"] = json!(false);
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let status = json!({"status": {"phase": phase, "containerStatuses": statuses}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

async fn wait_gone(fixture: &Fixture, namespace: &str, pod: &str) {
    let look = || async {
        match pods(fixture, namespace).get_opt(pod).await {
            Ok(None) => Ok(()),
            Ok(Some(pod)) => Err(format!("{:?}", pod.metadata.deletion_timestamp)),
            Err(error) => Err(error.to_string()),
        }
    };
    wait_for(LONG, &format!("pod {pod} to be gone"), look).await.unwrap();
}

#[test]
fn logs_of_pods_ended_by_a_success_policy_are_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "success").await;
        let spec = json!({
            "completionMode": "Indexed", "completions": 3, "parallelism": 3,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        });
        fixture.create(&ns, &with("leader", &TICKS, spec)).await.unwrap();
        let names = running(fixture, &ns, "leader", 3).await;
        for name in &names {
            written(fixture, &ns, name).await;
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
            assert_whole(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&name)).unwrap());
        }
        assert_eq!(stored.manifest["completeness"]["complete"], true, "{}", stored.lost());
    });
}

#[test]
fn a_job_suspended_while_it_runs_keeps_its_earlier_logs() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "pause").await;
        fixture.create(&ns, &with("pause", &TICKS, json!({}))).await.unwrap();
        let first = running(fixture, &ns, "pause", 1).await.remove(0);
        written(fixture, &ns, &first).await;
        let set = async |suspend: bool| {
            let patch = json!({"spec": {"suspend": suspend}});
            fixture.jobs(&ns).patch("pause", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        };
        set(true).await;
        wait_gone(fixture, &ns, &first).await;
        set(false).await;
        let second = running(fixture, &ns, "pause", 1).await.remove(0);
        written(fixture, &ns, &second).await;
        end(fixture, &ns, &second, 0).await;
        let stored = result(fixture, &ns, "pause").await;
        assert_eq!(stored.pods().len(), 2);
        let of = |name: &str| stored.logs.split("=== Pod: ").find(|s| s.starts_with(name)).unwrap();
        assert_whole(of(&first));
        assert!(of(&second).contains("done after tick"), "{}", stored.logs);
    });
}

#[test]
fn pods_deleted_by_hand_or_evicted_are_in_the_result() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "byhand").await;
        let spec = json!({"backoffLimit": 3});
        for name in ["deleted", "evicted"] {
            fixture.create(&ns, &with(name, &TICKS, spec.clone())).await.unwrap();
        }
        for name in ["deleted", "evicted"] {
            let first = running(fixture, &ns, name, 1).await.remove(0);
            written(fixture, &ns, &first).await;
            if name == "deleted" {
                pods(fixture, &ns).delete(&first, &DeleteParams::default()).await.unwrap();
            } else {
                pods(fixture, &ns).evict(&first, &EvictParams::default()).await.unwrap();
            }
            wait_gone(fixture, &ns, &first).await;
            let second = running(fixture, &ns, name, 1).await.remove(0);
            end(fixture, &ns, &second, 0).await;
            let stored = result(fixture, &ns, name).await;
            assert_eq!(stored.manifest["outcome"], "completed");
            let gone = stored.pods().iter().find(|pod| pod["name"] == first).unwrap();
            assert_eq!(gone["gone"], true);
            assert_whole(stored.logs.split("=== Pod: ").find(|s| s.starts_with(&first)).unwrap());
        }
        // By the kubelet itself: its containers' logs are gone as it says so.
        let play = [("run", "2s"), ("end", "Evicted"), ("log", "x\n")];
        fixture.create(&ns, &with("pressed", &play, json!({"backoffLimit": 0}))).await.unwrap();
        let stored = result(fixture, &ns, "pressed").await;
        assert_eq!(stored.manifest["cause"], "evicted");
        assert!(stored.lost().contains("unable to retrieve container logs"), "{}", stored.lost());
    });
}

#[test]
fn jobs_of_a_deleted_node_report_their_loss() {
    scenario(|fixture| async move {
        let ns = harvest(fixture, "nodegone").await;
        let nodes: Api<Node> = Api::all(fixture.client());
        let name = format!("{}-node", &*ns);
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let on_it = json!({"backoffLimit": 0, "template": {"spec": {"nodeName": name}}});
        fixture.create(&ns, &with("stranded", &TICKS, on_it)).await.unwrap();
        let pod = running(fixture, &ns, "stranded", 1).await.remove(0);
        written(fixture, &ns, &pod).await;
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
        let ns = harvest(fixture, "never").await;
        let deadline = json!({"activeDeadlineSeconds": 2});
        let waits = [("waiting-reason", "ImagePullBackOff"), ("waiting-message", "no such image")];
        fixture.create(&ns, &with("image", &waits, deadline.clone())).await.unwrap();
        let config = [
            ("waiting-reason", "CreateContainerConfigError"),
            ("waiting-message", "secret \"db\" not found"),
        ];
        fixture.create(&ns, &with("config", &config, deadline.clone())).await.unwrap();
        let mut nowhere = with("nowhere", &[], deadline.clone());
        nowhere["spec"]["template"]["spec"]["nodeSelector"] = json!({"no-such": "label"});
        fixture.create(&ns, &nowhere).await.unwrap();
        fixture.create(&ns, &with("slow", &[("start-delay", "1h")], deadline)).await.unwrap();
        fixture.create(&ns, &with("none", &[], json!({"completions": 0, "parallelism": 0}))).await.unwrap();
        for (name, told) in [
            ("image", "never started, ImagePullBackOff: no such image"),
            ("config", "never started, CreateContainerConfigError: secret \"db\" not found"),
            ("nowhere", "was never scheduled: "),
        ] {
            let stored = result(fixture, &ns, name).await;
            assert_failed(&stored, "DeadlineExceeded");
            let decisive = stored.manifest["decisive"].as_str().unwrap();
            assert!(decisive.contains(told), "{name}: {}", stored.manifest);
            let event = fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", name).await.pop().ok_or("none")
                })
                .await;
            assert!(event.note.unwrap().contains(told), "{name}");
            assert_eq!(stored.pods().len(), 1, "{}", stored.manifest);
            assert!(
                stored.pods()[0]["containers"][0]["logs"].is_null(),
                "nothing was written: {}",
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
        let ns = harvest(fixture, "crowd").await;
        let play = [("end", "Hang"), ("log", "a line\n"), ("termination-delay", "2s")];
        let spec = json!({"activeDeadlineSeconds": 3, "template": {"spec": {
            "initContainers": [
                {"name": "prepare", "image": "busybox"},
                {"name": "proxy", "image": "busybox", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "main", "image": "busybox"}, {"name": "helper", "image": "busybox"}],
        }}});
        fixture.create(&ns, &with("crowd", &play, spec)).await.unwrap();
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
