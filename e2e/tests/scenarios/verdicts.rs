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
