//! What a result says of the outcome: which container failed, why, and what is missing, for pods that end in odd ways.

use std::time::Duration;

use job_handler_e2e::wait_for;
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, scenario};

/// Slack for a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Creates a Job in a namespace of its own, whose policy requests results; returns its manifest and logs.
async fn harvested(fixture: &Fixture, namespace: &str, job: &Value) -> (Value, String) {
    let namespace = fixture.cluster.namespace(namespace).await.unwrap();
    fixture.apply_policy(&namespace, "results", json!({"results": {}})).await;
    // Retries wait for minutes.
    let mut job = job.clone();
    job["spec"]["backoffLimit"] = json!(0);
    fixture.create(&namespace, &job).await.unwrap();
    let name = format!("{}-results", job["metadata"]["name"].as_str().unwrap());
    let api = fixture.config_maps(&namespace);
    let poll = || async { api.get(&name).await.map_err(|e| e.to_string()) };
    let stored = wait_for(TIMEOUT, &format!("the result {name}"), poll).await.unwrap();
    let data = stored.data.unwrap_or_default();
    (serde_json::from_str(&data["result.json"]).unwrap(), data.get("logs").cloned().unwrap_or_default())
}

#[test]
fn a_process_that_exits_with_0_on_sigterm_is_not_lost() {
    scenario(|fixture| async move {
        let simulation = [("end", "Hang"), ("log", "all is said\n"), ("sigterm-exit-code", "0")];
        let mut polite = job("polite", &[], &simulation);
        polite["spec"]["activeDeadlineSeconds"] = json!(4);
        let (manifest, logs) = harvested(fixture, "polite", &polite).await;
        assert_eq!((&manifest["outcome"], &manifest["job"]["failedPods"]), (&json!("failed"), &json!(1)));
        assert_eq!(manifest["pods"][0]["phase"], "Succeeded", "{manifest}");
        assert!(logs.contains("all is said\n"), "{logs}");
        assert_eq!(manifest["completeness"], json!({"complete": true}), "{manifest}");
    });
}

#[test]
fn a_sidecar_that_is_killed_after_the_main_container_is_not_the_cause() {
    scenario(|fixture| async move {
        let mut side = job("side", &[], &[("exit-code", "5"), ("sidecar-exit-code", "137")]);
        side["spec"]["template"]["spec"]["initContainers"] =
            json!([{"name": "proxy", "image": "registry.test/p:1", "restartPolicy": "Always"}]);
        let (manifest, _) = harvested(fixture, "sidecar-last", &side).await;
        let (container, cause) = (&manifest["failure"]["container"], &manifest["cause"]);
        assert_eq!((&container["exitCode"], cause), (&json!(5), &json!("error")), "{manifest}");
        assert_eq!(manifest["pods"][0]["containers"][0]["state"]["exitCode"], 137, "{manifest}");
        let decisive = manifest["decisive"].as_str().unwrap();
        assert!(decisive.contains("ended with exit code 5"), "{decisive}");
    });
}

#[test]
fn the_pods_of_a_job_with_a_selector_of_its_own_are_found() {
    scenario(|fixture| async move {
        let mut manual = job("manual", &[], &[("log", "the only copy of this line\n")]);
        manual["spec"]["manualSelector"] = json!(true);
        manual["spec"]["selector"] = json!({"matchLabels": {"app": "manual"}});
        manual["spec"]["template"]["metadata"]["labels"] = json!({"app": "manual"});
        let (manifest, logs) = harvested(fixture, "manual-selector", &manual).await;
        assert_eq!(manifest["pods"].as_array().unwrap().len(), 1, "{manifest}");
        assert!(logs.contains("the only copy of this line\n"), "{logs}");
        assert_eq!(manifest["completeness"], json!({"complete": true}), "{manifest}");
    });
}

#[test]
fn a_stack_trace_is_told_by_the_line_that_names_the_error() {
    scenario(|fixture| async move {
        let message = "Traceback (most recent call last):\n  File \"a.py\", line 3\nValueError: bad row 17\n";
        let multi = job("multi", &[], &[("exit-code", "2"), ("termination-message", message)]);
        let (manifest, _) = harvested(fixture, "stack-trace", &multi).await;
        let decisive = manifest["decisive"].as_str().unwrap();
        assert!(decisive.ends_with("ended with exit code 2: ValueError: bad row 17"), "{decisive}");
    });
}

#[test]
fn a_message_that_is_the_end_of_a_log_is_told_by_its_last_line() {
    scenario(|fixture| async move {
        let message = "downloading\ncannot open the archive\n\n";
        let mut fallback = job("fallback", &[], &[("exit-code", "2"), ("termination-message", message)]);
        fallback["spec"]["template"]["spec"]["containers"][0]["terminationMessagePolicy"] =
            json!("FallbackToLogsOnError");
        let (manifest, _) = harvested(fixture, "log-message", &fallback).await;
        let decisive = manifest["decisive"].as_str().unwrap();
        assert!(decisive.ends_with(": cannot open the archive"), "{decisive}");
    });
}

#[test]
fn why_a_container_never_started_is_kept() {
    scenario(|fixture| async move {
        let waiting = [("waiting-reason", "ErrImagePull"), ("waiting-message", "no such image")];
        let mut unstarted = job("unstarted", &[], &waiting);
        unstarted["spec"]["activeDeadlineSeconds"] = json!(4);
        let (manifest, _) = harvested(fixture, "never-started", &unstarted).await;
        let container = &manifest["failure"]["container"];
        assert_eq!(
            (&container["cause"], &container["reason"]),
            (&json!("image"), &json!("ErrImagePull")),
            "{manifest}"
        );
        assert!(
            manifest["decisive"].as_str().unwrap().ends_with("never started, ErrImagePull: no such image")
        );
        assert_eq!(manifest["completeness"], json!({"complete": true}), "{manifest}");
    });
}
