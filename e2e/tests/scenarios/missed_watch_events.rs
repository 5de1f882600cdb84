//! What the watch of Jobs does not tell is found out all the same.

use std::time::{Duration, Instant};

use job_handler_e2e::PairOptions;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::fixtures::{PATIENCE, job, lonely_scenario_with};

/// Half a minute is promised; the rest is for a busy machine.
const SLACK: Duration = Duration::from_secs(50);
const JOBS: &str = "/apis/batch/v1/jobs";

#[test]
fn a_terminal_event_that_never_comes_costs_half_a_minute() {
    lonely_scenario_with(PairOptions { sink_proxy: true, ..PairOptions::default() }, async |world| {
        let ns = world.cluster.namespace("missed").await.unwrap();
        world.policy(&ns, "results", json!({"results": {}})).await;
        let proxy = world.pair.sink().proxy();
        let run = async |name: &str| {
            let play = [("run", "3s"), ("log", "all of it\n")];
            world.create(&ns, &job(name, &[], &play)).await.unwrap();
            // The sink has heard of it, and follows its pod.
            world
                .wait(&format!("{name} to run"), || async {
                    let status = world.jobs(&ns).get(name).await.map_err(|e| e.to_string())?.status;
                    let active = status.unwrap_or_default().active == Some(1);
                    if active { Ok(()) } else { Err("not yet".to_owned()) }
                })
                .await;
        };
        let found = async |name: &str, how: &str| {
            world.cluster.wait_job_finished(&ns, name, PATIENCE).await.unwrap();
            let finished = Instant::now();
            let result = world.result(&ns, name).await;
            let took = finished.elapsed();
            eprintln!("{how}: harvested {took:.1?} after it finished");
            assert!(took < SLACK, "{how}: {took:?}");
            assert!(result.data.unwrap()["logs"].contains("all of it"));
        };

        // The connection stays, and nothing comes any more.
        run("silent").await;
        assert!(proxy.stall_watches(JOBS) > 0, "no watch of Jobs is open");
        found("silent", "a watch that stands still").await;

        // Everything comes but that one word, and the watch goes on behind it.
        let swallowed = proxy.swallow(&["\"name\":\"swallowed\"", "\"type\":\"SuccessCriteriaMet\""]);
        run("swallowed").await;
        world.cluster.wait_job_finished(&ns, "swallowed", PATIENCE).await.unwrap();
        let later = Patch::Merge(json!({"metadata": {"labels": {"touched": "yes"}}}));
        world.jobs(&ns).patch("silent", &PatchParams::default(), &later).await.unwrap();
        found("swallowed", "an event that was swallowed").await;
        assert!(swallowed.count() > 0, "nothing was swallowed: this shows nothing");
    });
}
