//! Harvests: the keys of results, annotations, Events, deletion, pruning.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, job, scenario};

async fn harvest_everything(fixture: &Fixture, ns: &str) {
    fixture.apply_policy(ns, "results", json!({"results": {}})).await;
}

/// Annotations that control a simulated pod.
type Simulation = &'static [(&'static str, &'static str)];

/// A Job without retries.
fn job_without_retries(name: &str, simulation: &[(&str, &str)]) -> Value {
    let mut job = job(name, &[], simulation);
    job["spec"]["backoffLimit"] = json!(0);
    job
}

fn manifest(result: &ConfigMap) -> Value {
    serde_json::from_str(&result.data.as_ref().unwrap()["result.json"]).unwrap()
}

#[test]
fn a_completed_job_leaves_a_result_an_annotation_and_an_event() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("done").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let simulation =
            [("run", "300ms"), ("log", "line one\nline two\n"), ("termination-message", "42 rows")];
        let mut done = job_without_retries("done", &simulation);
        done["spec"]["ttlSecondsAfterFinished"] = json!(3600);
        let created = fixture.create(&ns, &done).await.unwrap();
        let result = fixture.wait_result(&ns, "done").await;
        let data = result.data.as_ref().unwrap();
        let keys: BTreeSet<_> = data.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            BTreeSet::from(["completion-time", "job-name", "logs", "result", "result.json", "status"])
        );
        assert_eq!((data["job-name"].as_str(), data["status"].as_str()), ("done", "completed"));
        assert_eq!(data["result"], "42 rows");
        assert!(data["logs"].contains("=== Pod: done-") && data["logs"].contains(" / Container: main ==="));
        assert!(data["logs"].contains("line one\nline two\n"));
        let labels = result.labels();
        assert_eq!(labels["job-handler/created"], "true");
        assert_eq!(
            (labels["job-name"].as_str(), labels["job-handler/status"].as_str()),
            ("done", "completed")
        );
        assert!(result.owner_references().is_empty(), "a result is kept after its Job is deleted");
        assert!(manifest(&result).to_string().contains(&created.uid().unwrap()));

        let job = fixture
            .wait("the annotations", || async {
                let job = fixture.jobs(&ns).get("done").await.unwrap();
                if annotation(&job, "job-handler/status") == "completed" {
                    Ok(job)
                } else {
                    Err(format!("{job:?}"))
                }
            })
            .await;
        assert_eq!(annotation(&job, "job-handler/results"), "done-results");
        assert_eq!(job.spec.unwrap().ttl_seconds_after_finished, Some(3600), "its own TTL is restored");
        let completion =
            job.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Complete").unwrap();
        let time = data["completion-time"].parse::<jiff::Timestamp>().unwrap();
        assert_eq!(time, completion.last_transition_time.unwrap().0);

        let event = fixture
            .wait("the Event", || async {
                fixture.events(&ns, "JobProcessing", "done").await.pop().ok_or("none")
            })
            .await;
        assert_eq!((event.type_.as_deref(), event.action.as_deref()), (Some("Normal"), Some("Completed")));
        let note = event.note.unwrap();
        assert!(note.contains("done-results") && note.len() <= 1024, "{note}");
    });
}

#[test]
fn each_kind_of_failure_has_its_own_reason() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("failed").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let table: [(&str, Simulation, [&str; 2]); 3] = [
            (
                "exit",
                &[("run", "200ms"), ("exit-code", "3"), ("log", "cannot open file\n")],
                ["3", "cannot open file"],
            ),
            ("oom", &[("run", "200ms"), ("end", "OOMKilled")], ["OOMKilled", "137"]),
            ("evicted", &[("run", "200ms"), ("end", "Evicted")], ["Evicted", "low on resource"]),
        ];
        for (name, simulation, _) in table {
            fixture.create(&ns, &job_without_retries(name, simulation)).await.unwrap();
        }
        for (name, _, texts) in table {
            let result = fixture.wait_result(&ns, name).await;
            assert_eq!(result.data.as_ref().unwrap()["status"], "failed");
            assert_eq!(result.labels()["job-handler/status"], "failed");
            let event = fixture
                .wait("the Event", || async {
                    fixture.events(&ns, "JobProcessing", name).await.pop().ok_or("none")
                })
                .await;
            assert_eq!((event.type_.as_deref(), event.action.as_deref()), (Some("Warning"), Some("Failed")));
            let all = format!("{} {}", manifest(&result), event.note.unwrap());
            for text in texts {
                assert!(all.contains(text), "{name}: {text} in {all}");
            }
        }
    });
}

#[test]
fn every_container_is_in_the_result() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("containers").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let mut many = job_without_retries("many", &[("run", "300ms"), ("log", "a line\n")]);
        many["spec"]["template"]["spec"]["initContainers"] = json!([
            {"name": "prepare", "image": "busybox"},
            {"name": "proxy", "image": "busybox", "restartPolicy": "Always"},
        ]);
        many["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "main", "image": "busybox"}, {"name": "helper", "image": "busybox"}]);
        fixture.create(&ns, &many).await.unwrap();
        let result = fixture.wait_result(&ns, "many").await;
        let logs = &result.data.as_ref().unwrap()["logs"];
        for container in ["prepare", "proxy", "main", "helper"] {
            assert!(logs.contains(&format!("/ Container: {container} ===")), "{container} in {logs}");
            assert!(manifest(&result).to_string().contains(container));
        }
    });
}

#[test]
fn large_and_binary_logs_are_stored_within_their_budget() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("large").await.unwrap();
        harvest_everything(fixture, &ns).await;
        fixture
            .create(&ns, &job_without_retries("large", &[("run", "300ms"), ("log-bytes", "5242880")]))
            .await
            .unwrap();
        fixture
            .create(&ns, &job_without_retries("binary", &[("run", "300ms"), ("log-binary", "4096")]))
            .await
            .unwrap();
        let large = fixture.wait_result(&ns, "large").await;
        let manifest = manifest(&large).to_string();
        assert!(manifest.contains("5242880"), "the original length in {manifest}");
        let binary = fixture.wait_result(&ns, "binary").await;
        assert!(binary.binary_data.is_some_and(|data| !data.is_empty()), "the bytes are stored unchanged");
    });
}

#[test]
fn a_config_map_of_another_owner_is_not_overwritten() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("foreign").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let foreign: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "taken-results"}, "data": {"mine": "yes"}}))
                .unwrap();
        let foreign = fixture.config_maps(&ns).create(&PostParams::default(), &foreign).await.unwrap();
        let created = fixture
            .create(&ns, &job_without_retries("taken", &[("run", "200ms"), ("log", "the log\n")]))
            .await
            .unwrap();
        let other_name = format!("taken-results-{}", &created.uid().unwrap()[..8]);
        let api = fixture.config_maps(&ns);
        let result =
            fixture.wait("the result under another name", || async { api.get(&other_name).await }).await;
        assert!(result.data.unwrap()["logs"].contains("the log"));
        let after = fixture.config_maps(&ns).get("taken-results").await.unwrap();
        assert_eq!(after.resource_version(), foreign.resource_version(), "untouched");
        fixture
            .wait("the Event about the name", || async {
                fixture.events(&ns, "ResultNameTaken", "taken").await.pop().ok_or("none")
            })
            .await;
        let job = fixture
            .wait("the annotations", || async {
                let job = fixture.jobs(&ns).get("taken").await.unwrap();
                if annotation(&job, "job-handler/results").is_empty() { Err("none") } else { Ok(job) }
            })
            .await;
        assert_eq!(annotation(&job, "job-handler/results"), other_name);
    });
}

#[test]
fn jobs_are_deleted_by_policy_and_groups_keep_their_newest() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("cleanup").await.unwrap();
        let spec = json!({
            "group": {"type": "Labels", "labelKeys": ["id"]}, "results": {},
            "cleanup": {"succeededPolicy": "AfterTTL", "failedPolicy": "AfterHarvest", "keep": {"newest": 1}},
        });
        fixture.apply_policy(&ns, "clean", spec).await;
        let run = |name: &str, id: &str, code: &str| {
            let mut job = job(name, &[("id", id)], &[("run", "200ms"), ("exit-code", code)]);
            job["spec"]["backoffLimit"] = json!(0);
            job
        };
        fixture.create(&ns, &run("failed", "1", "1")).await.unwrap();
        fixture.wait_job_deleted(&ns, "failed").await;
        fixture.wait_result(&ns, "failed").await;
        assert_eq!(
            fixture.events(&ns, "JobProcessing", "failed").await.len(),
            1,
            "the Event is published although the Job is deleted"
        );
        for name in ["first", "second", "third"] {
            fixture.create(&ns, &run(name, "2", "0")).await.unwrap();
            fixture.wait_result(&ns, name).await;
        }
        fixture.create(&ns, &run("single", "3", "0")).await.unwrap();
        fixture.wait_result(&ns, "single").await;
        fixture.wait_job_deleted(&ns, "first").await;
        fixture.wait_job_deleted(&ns, "second").await;
        for kept in ["third", "single"] {
            assert!(fixture.jobs(&ns).get(kept).await.is_ok(), "{kept}");
        }
        for name in ["first", "second", "third", "single"] {
            fixture.wait_result(&ns, name).await;
        }
    });
}

#[test]
fn a_suspended_job_is_not_finished() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("suspended").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let mut waits = job_without_retries("waits", &[("run", "200ms"), ("log", "at last\n")]);
        waits["spec"]["suspend"] = json!(true);
        fixture.create(&ns, &waits).await.unwrap();
        fixture.create(&ns, &job_without_retries("runs", &[("run", "200ms")])).await.unwrap();
        fixture.wait_result(&ns, "runs").await;
        assert!(fixture.config_maps(&ns).get_opt("waits-results").await.unwrap().is_none());
        let start = json!({"spec": {"suspend": false}});
        fixture.jobs(&ns).patch("waits", &PatchParams::default(), &Patch::Merge(&start)).await.unwrap();
        let result = fixture.wait_result(&ns, "waits").await;
        assert!(result.data.unwrap()["logs"].contains("at last"));
    });
}

#[test]
fn a_second_run_of_the_same_name_moves_the_older_result() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("rerun").await.unwrap();
        harvest_everything(fixture, &ns).await;
        let first = fixture
            .create(&ns, &job_without_retries("again", &[("run", "200ms"), ("log", "run one\n")]))
            .await
            .unwrap();
        fixture.wait_result(&ns, "again").await;
        fixture
            .wait("the first run's annotations", || async {
                let job = fixture.jobs(&ns).get("again").await.unwrap();
                if annotation(&job, "job-handler/status").is_empty() { Err("none") } else { Ok(()) }
            })
            .await;
        fixture.jobs(&ns).delete("again", &kube::api::DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "again").await;
        fixture
            .create(&ns, &job_without_retries("again", &[("run", "200ms"), ("log", "run two\n")]))
            .await
            .unwrap();
        fixture
            .wait("the second result", || async {
                let result =
                    fixture.config_maps(&ns).get("again-results").await.map_err(|e| e.to_string())?;
                let logs = result.data.unwrap()["logs"].clone();
                if logs.contains("run two") { Ok(()) } else { Err(logs) }
            })
            .await;
        let older = format!("again-results-{}", &first.uid().unwrap()[..8]);
        let moved = fixture.config_maps(&ns).get(&older).await.unwrap();
        assert!(moved.data.unwrap()["logs"].contains("run one"));
        let all = fixture
            .config_maps(&ns)
            .list(&ListParams::default().labels("job-handler/created=true"))
            .await
            .unwrap();
        assert_eq!(all.items.len(), 2);
    });
}
