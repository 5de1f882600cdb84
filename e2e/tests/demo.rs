//! Each step of the demo is broken once, fails, and is then told as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use job_handler_e2e::{
    Cluster, ClusterOptions, Pair, PairOptions,
    build::pair_programs,
    demo::{self, STEPS, Step, StoryOptions},
};
use serde_json::Value;

const EVENTS: [&str; 4] = ["-n", "ci", "--field-selector", "reason=JobProcessing"];

/// Takes away what a step tells of; returns what is needed to give it back.
async fn sabotage(step: Step, cluster: &Cluster, pair: &Pair) -> String {
    let limits = |max: u32, per_parser: u32| {
        format!(
            r#"{{"spec":{{"limits":[{{"name":"concurrent-builds","maxActiveJobs":{max},"scope":"Namespace"}},
            {{"name":"one-per-parser","maxActiveJobs":{per_parser},"scope":"Group"}}]}}}}"#
        )
    };
    match step {
        // The webhook is not called any more.
        Step::Stamp => {
            let off = r#"[{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["nothings"]}]"#;
            let patch = ["patch", "mutatingwebhookconfiguration", "job-handler", "--type=json", "-p", off];
            cluster.kubectl(&patch).await.unwrap();
        }
        Step::Limit => patch_policy(cluster, &limits(50, 1)).await,
        Step::Duplicate => patch_policy(cluster, &limits(10, 2)).await,
        // Nobody harvests, prunes or tells.
        Step::Prune | Step::Reasons | Step::Results => pair.sink().stop().unwrap(),
        // The Events are gone.
        Step::Warnings => {
            let get = ["get", "events", "-o", "json"].into_iter().chain(EVENTS).collect::<Vec<_>>();
            let events = cluster.kubectl(&get).await.unwrap();
            cluster
                .kubectl(&["delete", "events"].into_iter().chain(EVENTS).collect::<Vec<_>>())
                .await
                .unwrap();
            return events;
        }
        // The Jobs the cleaner would find are made in a namespace that is going.
        Step::Sweep => {
            cluster.kubectl(&["delete", "namespace", "legacy", "--wait=true"]).await.unwrap();
        }
    }
    String::new()
}

async fn mend(step: Step, cluster: &Cluster, pair: &Pair, kept: &str) {
    match step {
        Step::Stamp => {
            let on = r#"[{"op":"replace","path":"/webhooks/0/rules/0/resources","value":["jobs"]}]"#;
            let patch = ["patch", "mutatingwebhookconfiguration", "job-handler", "--type=json", "-p", on];
            cluster.kubectl(&patch).await.unwrap();
        }
        Step::Limit | Step::Duplicate => {
            let sample = include_str!("../../manifests/samples/builds.yaml");
            cluster.kubectl_with_input(&["apply", "-f", "-"], sample).await.unwrap();
            ready(cluster).await;
        }
        // Paused beyond its Lease it would end by itself; a fresh one is what Kubernetes would start then.
        Step::Prune | Step::Reasons | Step::Results => pair.sink().restart().unwrap(),
        Step::Warnings => {
            let mut events: Value = serde_json::from_str(kept).unwrap();
            for event in events["items"].as_array_mut().unwrap() {
                let metadata = event["metadata"].as_object_mut().unwrap();
                metadata.retain(|key, _| key == "name" || key == "namespace");
            }
            cluster.kubectl_with_input(&["create", "-f", "-"], &events.to_string()).await.unwrap();
        }
        Step::Sweep => {
            cluster.kubectl(&["create", "namespace", "legacy"]).await.unwrap();
        }
    }
}

async fn patch_policy(cluster: &Cluster, patch: &str) {
    cluster
        .kubectl(&["patch", "jobpolicy", "builds", "-n", "ci", "--type=merge", "-p", patch])
        .await
        .unwrap();
    ready(cluster).await;
}

async fn ready(cluster: &Cluster) {
    let wait = ["wait", "jobpolicy/builds", "-n", "ci", "--for=condition=Ready", "--timeout=30s"];
    cluster.kubectl(&wait).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_fails_when_it_is_not_as_told_and_passes_when_it_is() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
    let options = StoryOptions {
        sink: pair_programs().unwrap().join("job-handler-sink"),
        patience: Duration::from_secs(5),
        builds_run: Duration::from_secs(200),
        quiet: true,
    };
    let mut story = demo::set_stage(&cluster, options).await.unwrap();
    for step in STEPS {
        let kept = sabotage(step, &cluster, &pair).await;
        assert!(!story.tell(step).await, "{} went as told although it was broken", step.name());
        mend(step, &cluster, &pair, &kept).await;
        let told = story.tell(step).await;
        assert!(told, "{}: {:?}", step.name(), story.report().steps.last());
    }
    // What `--json` writes: each step twice, broken and mended, with the commands and what they said.
    let json = serde_json::to_value(story.report()).unwrap();
    let steps = json["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2 * STEPS.len());
    for (told, step) in steps.chunks(2).zip(STEPS) {
        assert_eq!((&told[0]["name"], &told[0]["ok"]), (&step.name().into(), &false.into()));
        assert!(told[0]["problem"].is_string(), "{told:?}");
        assert_eq!((&told[1]["ok"], &told[1]["problem"]), (&true.into(), &Value::Null));
        assert!(!told[1]["seen"].as_array().unwrap().is_empty(), "{told:?}");
        assert!(told[1]["commands"][0]["command"].is_string(), "{told:?}");
    }
}
