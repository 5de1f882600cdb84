//! Changes that the watch of Jobs missed are found by the resync.

use std::time::{Duration, Instant};

use job_handler_e2e::PairOptions;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::fixtures::{PATIENCE, exclusive_scenario_with_options, job};

/// The resync interval is half a minute; the rest is slack for a busy machine.
const MAX_DELAY: Duration = Duration::from_secs(50);
const JOBS: &str = "/apis/batch/v1/jobs";

#[test]
fn a_missed_watch_event_delays_the_harvest_by_at_most_half_a_minute() {
    exclusive_scenario_with_options(
        PairOptions { sink_proxy: true, ..PairOptions::default() },
        async |fixture| {
            let ns = fixture.cluster.namespace("missed").await.unwrap();
            fixture.apply_policy(&ns, "results", json!({"results": {}})).await;
            let proxy = fixture.pair.sink().proxy();
            let run = async |name: &str| {
                let play = [("run", "3s"), ("log", "the full log\n")];
                fixture.create(&ns, &job(name, &[], &play)).await.unwrap();
                // Once the Job is active, the sink knows it and follows its pod.
                fixture
                    .wait(&format!("{name} to run"), || async {
                        let status = fixture.jobs(&ns).get(name).await.map_err(|e| e.to_string())?.status;
                        let active = status.unwrap_or_default().active == Some(1);
                        if active { Ok(()) } else { Err("not yet".to_owned()) }
                    })
                    .await;
            };
            let assert_harvested = async |name: &str, fault: &str| {
                fixture.cluster.wait_job_finished(&ns, name, PATIENCE).await.unwrap();
                let finished = Instant::now();
                let result = fixture.wait_result(&ns, name).await;
                let took = finished.elapsed();
                eprintln!("{fault}: harvested {took:.1?} after it finished");
                assert!(took < MAX_DELAY, "{fault}: {took:?}");
                assert!(result.data.unwrap()["logs"].contains("the full log"));
            };

            // The connection stays open, but delivers no more events.
            run("stalled").await;
            assert!(proxy.stall_watches(JOBS) > 0, "no watch of Jobs is open");
            assert_harvested("stalled", "a stalled watch").await;

            // Only that event is dropped; the watch continues.
            let dropped = proxy.drop_events(&["\"name\":\"dropped\"", "\"type\":\"SuccessCriteriaMet\""]);
            run("dropped").await;
            fixture.cluster.wait_job_finished(&ns, "dropped", PATIENCE).await.unwrap();
            let later = Patch::Merge(json!({"metadata": {"labels": {"touched": "yes"}}}));
            fixture.jobs(&ns).patch("stalled", &PatchParams::default(), &later).await.unwrap();
            assert_harvested("dropped", "a dropped event").await;
            assert!(dropped.count() > 0, "no event was dropped, so that the test proves nothing");
        },
    );
}
