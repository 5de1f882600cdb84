//! Changes that the watch of Jobs missed are found by the resync.

use std::time::{Duration, Instant};

use job_handler_e2e::PairOptions;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::fixtures::{PATIENCE, exclusive_scenario_with_options, job};

/// Half a minute is promised; the rest is for a busy machine.
const SLACK: Duration = Duration::from_secs(50);
const JOBS: &str = "/apis/batch/v1/jobs";

#[test]
fn a_missed_terminal_event_delays_the_harvest_by_half_a_minute() {
    exclusive_scenario_with_options(
        PairOptions { sink_proxy: true, ..PairOptions::default() },
        async |fixture| {
            let ns = fixture.cluster.namespace("missed").await.unwrap();
            fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
            let proxy = fixture.pair.sink().proxy();
            let run = async |name: &str| {
                let play = [("run", "3s"), ("log", "all of it\n")];
                fixture.create(&ns, &job(name, &[], &play)).await.unwrap();
                // The sink has heard of it, and follows its pod.
                fixture
                    .wait(&format!("{name} to run"), || async {
                        let status = fixture.jobs(&ns).get(name).await.map_err(|e| e.to_string())?.status;
                        let active = status.unwrap_or_default().active == Some(1);
                        if active { Ok(()) } else { Err("not yet".to_owned()) }
                    })
                    .await;
            };
            let found = async |name: &str, how: &str| {
                fixture.cluster.wait_job_finished(&ns, name, PATIENCE).await.unwrap();
                let finished = Instant::now();
                let result = fixture.wait_result(&ns, name).await;
                let took = finished.elapsed();
                eprintln!("{how}: harvested {took:.1?} after it finished");
                assert!(took < SLACK, "{how}: {took:?}");
                assert!(result.data.unwrap()["logs"].contains("all of it"));
            };

            // The connection stays, and nothing comes any more.
            run("silent").await;
            assert!(proxy.stall_watches(JOBS) > 0, "no watch of Jobs is open");
            found("silent", "a watch that stands still").await;

            // Only that event is dropped; the watch continues.
            let swallowed = proxy.drop_events(&["\"name\":\"swallowed\"", "\"type\":\"SuccessCriteriaMet\""]);
            run("swallowed").await;
            fixture.cluster.wait_job_finished(&ns, "swallowed", PATIENCE).await.unwrap();
            let later = Patch::Merge(json!({"metadata": {"labels": {"touched": "yes"}}}));
            fixture.jobs(&ns).patch("silent", &PatchParams::default(), &later).await.unwrap();
            found("swallowed", "an event that was swallowed").await;
            assert!(swallowed.count() > 0, "nothing was swallowed: this shows nothing");
        },
    );
}
