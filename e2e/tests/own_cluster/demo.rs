//! Each step of the demo fails when it is sabotaged, and passes after the repair.

use std::time::Duration;

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions,
    build::pair_programs,
    demo::{self, DemoOptions, DemoStep, STEPS},
};
use serde_json::Value;

const EVENTS: [&str; 4] = ["-n", "ci", "--field-selector", "reason=JobProcessing"];

/// Breaks the behaviour that a step shows, and returns the objects that `repair` restores.
async fn sabotage(step: DemoStep, cluster: &Cluster, pair: &Pair) -> String {
    let limits = |max: u32, per_parser: u32| {
        format!(
            r#"{{"spec":{{"limits":[{{"name":"concurrent-builds","maxActiveJobs":{max},"scope":"Namespace"}},
            {{"name":"one-per-parser","maxActiveJobs":{per_parser},"scope":"Group"}}]}}}}"#
        )
    };
    match step {
        // The webhook is no longer called.
        DemoStep::Stamp => {
            let off = r#"[{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["nothings"]}]"#;
            let patch = ["patch", "mutatingwebhookconfiguration", "job-handler", "--type=json", "-p", off];
            cluster.kubectl(&patch).await.unwrap();
        }
        DemoStep::Limit => patch_policy(cluster, &limits(50, 1)).await,
        DemoStep::Duplicate => patch_policy(cluster, &limits(10, 2)).await,
        // Nothing harvests, prunes or creates Events.
        DemoStep::Prune | DemoStep::Reasons | DemoStep::Results => pair.sink().stop().unwrap(),
        // The Events are deleted.
        DemoStep::Warnings => {
            let get = ["get", "events", "-o", "json"].into_iter().chain(EVENTS).collect::<Vec<_>>();
            let events = cluster.kubectl(&get).await.unwrap();
            cluster
                .kubectl(&["delete", "events"].into_iter().chain(EVENTS).collect::<Vec<_>>())
                .await
                .unwrap();
            return events;
        }
        // The namespace of the Jobs to prune does not exist.
        DemoStep::PruneCommand => {
            cluster.kubectl(&["delete", "namespace", "legacy", "--wait=true"]).await.unwrap();
        }
    }
    String::new()
}

async fn repair(step: DemoStep, cluster: &Cluster, pair: &Pair, saved: &str) {
    match step {
        DemoStep::Stamp => {
            let on = r#"[{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["jobs"]}]"#;
            let patch = ["patch", "mutatingwebhookconfiguration", "job-handler", "--type=json", "-p", on];
            cluster.kubectl(&patch).await.unwrap();
        }
        DemoStep::Limit | DemoStep::Duplicate => {
            let sample = include_str!("../../../manifests/samples/builds.yaml");
            cluster.kubectl_with_input(&["apply", "-f", "-"], sample).await.unwrap();
            wait_policy_ready(cluster).await;
        }
        // A sink that was paused for longer than its Lease exits when it continues; Kubernetes would start a new one.
        DemoStep::Prune | DemoStep::Reasons | DemoStep::Results => pair.sink().restart().unwrap(),
        DemoStep::Warnings => {
            let mut events: Value = serde_json::from_str(saved).unwrap();
            for event in events["items"].as_array_mut().unwrap() {
                let metadata = event["metadata"].as_object_mut().unwrap();
                metadata.retain(|key, _| key == "name" || key == "namespace");
            }
            cluster.kubectl_with_input(&["create", "-f", "-"], &events.to_string()).await.unwrap();
        }
        DemoStep::PruneCommand => {
            cluster.kubectl(&["create", "namespace", "legacy"]).await.unwrap();
        }
    }
}

async fn patch_policy(cluster: &Cluster, patch: &str) {
    cluster
        .kubectl(&["patch", "jobpolicy", "builds", "-n", "ci", "--type=merge", "-p", patch])
        .await
        .unwrap();
    wait_policy_ready(cluster).await;
}

async fn wait_policy_ready(cluster: &Cluster) {
    let wait = ["wait", "jobpolicy/builds", "-n", "ci", "--for=condition=Ready", "--timeout=90s"];
    cluster.kubectl(&wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_fails_when_sabotaged_and_passes_after_the_repair() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
    let options = DemoOptions {
        sink: pair_programs().unwrap().join("job-handler-sink"),
        patience: Duration::ZERO,
        quiet: true,
    };
    let mut runner = demo::prepare(&cluster, options).await.unwrap();
    for step in STEPS {
        let saved = sabotage(step, &cluster, &pair).await;
        // It fails anyway: a quiet machine would show the opposite within this time.
        runner.set_patience(Duration::from_secs(5));
        assert!(!runner.run_step(step).await, "{} passed although it was sabotaged", step.name());
        repair(step, &cluster, &pair, &saved).await;
        runner.set_patience(Duration::from_secs(90));
        let passed = runner.run_step(step).await;
        assert!(passed, "{}: {:?}", step.name(), runner.report().steps.last());
    }
    // The report that `--json` writes has each step twice, sabotaged and repaired, with its commands and their output.
    let json = serde_json::to_value(runner.report()).unwrap();
    let steps = json["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2 * STEPS.len());
    for (runs, step) in steps.chunks(2).zip(STEPS) {
        assert_eq!((&runs[0]["name"], &runs[0]["ok"]), (&step.name().into(), &false.into()));
        assert!(runs[0]["problem"].is_string(), "{runs:?}");
        assert_eq!((&runs[1]["ok"], &runs[1]["problem"]), (&true.into(), &Value::Null));
        assert!(!runs[1]["seen"].as_array().unwrap().is_empty(), "{runs:?}");
        assert!(runs[1]["commands"][0]["command"].is_string(), "{runs:?}");
    }
}
