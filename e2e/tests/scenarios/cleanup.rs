//! Deletion of finished Jobs, and the summary of results in a policy's status.

use std::time::Duration;

use job_handler_e2e::bench::cleanup_latency;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use super::fixtures::{Fixture, PATIENCE, job, scenario};

async fn wait_pods_deleted(fixture: &Fixture, ns: &str, name: &str) {
    let pods: Api<Pod> = Api::namespaced(fixture.client(), ns);
    let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    fixture
        .wait(&format!("the pods of {name} to be deleted"), || async {
            let count = pods.list(&of_job).await.map_err(|e| e.to_string())?.items.len();
            if count == 0 { Ok(()) } else { Err(format!("{count} pods")) }
        })
        .await;
}

#[test]
fn failed_policy_after_harvest_deletes_a_failed_job_with_its_pods() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("cleanup").await.unwrap();
        let cleanup = json!({"succeededPolicy": "Never", "failedPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "deleting", json!({"results": {}, "cleanup": cleanup})).await;
        fixture.create(&ns, &job("good", &[], &[])).await.unwrap();
        let mut bad = job("bad", &[], &[("exit-code", "1")]);
        bad["spec"]["backoffLimit"] = json!(0);
        bad["spec"]["ttlSecondsAfterFinished"] = json!(100_000);
        fixture.create(&ns, &bad).await.unwrap();
        fixture.wait_result(&ns, "bad").await;
        fixture.wait_job_deleted(&ns, "bad").await;
        let jobs = fixture.jobs(&ns);
        wait_pods_deleted(fixture, &ns, "bad").await;
        fixture.wait_result(&ns, "good").await;
        fixture
            .wait("the TTL to be removed", || async {
                let job = jobs.get("good").await.map_err(|e| e.to_string())?;
                let ttl = job.spec.and_then(|spec| spec.ttl_seconds_after_finished);
                ttl.map_or(Ok(()), |ttl| Err(format!("{ttl}")))
            })
            .await;
        let result = fixture.config_maps(&ns).get("bad-results").await.unwrap();
        assert_eq!(result.data.unwrap()["status"], "failed", "the result is kept");
    });
}

/// The benchmarks measure the delay; this tests that watch events cause the deletion, not the resync half a minute
/// later.
#[test]
fn failed_jobs_are_deleted_as_soon_as_their_results_are_stored() {
    scenario(|fixture| async move {
        const JOBS: usize = 12;
        let ns = fixture.cluster.namespace("deleted-soon").await.unwrap();
        let cleanup = json!({"failedPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "deleting", json!({"results": {}, "cleanup": cleanup})).await;
        let client = fixture.client();
        let run_failing_jobs = async {
            for n in 0..JOBS {
                let mut bad = job(&format!("bad-{n}"), &[], &[("exit-code", "1"), ("run", "3s")]);
                bad["spec"]["backoffLimit"] = json!(0);
                fixture.create(&ns, &bad).await.unwrap();
            }
        };
        let (delays, ()) = tokio::join!(
            cleanup_latency::deletion_delays(&client, &ns, JOBS, 2 * PATIENCE),
            run_failing_jobs
        );
        let mut delays: Vec<Duration> = delays.unwrap().into_values().collect();
        delays.sort_unstable();
        let (median, longest) = (delays[JOBS / 2], delays[JOBS - 1]);
        println!(
            "{JOBS} failed Jobs were deleted {median:?} (maximum {longest:?}) after their results were stored"
        );
        // Half of the time between resyncs, which would take that long in the median. A busy machine may delay one Job
        // by more.
        assert!(median < Duration::from_secs(15), "{delays:?}");
        for n in 0..JOBS {
            let result = fixture.config_maps(&ns).get(&format!("bad-{n}-results")).await.unwrap();
            assert_eq!(result.data.unwrap()["status"], "failed");
        }
    });
}

#[test]
fn jobs_of_a_deleted_policy_are_not_deleted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("deleted-policy").await.unwrap();
        let app = |name: &str| {
            json!({"jobSelector": {"matchLabels": {"app": name}}, "results": {},
                "cleanup": {"succeededPolicy": "AfterHarvest", "failedPolicy": "AfterHarvest"}})
        };
        fixture.apply_policy(&ns, "first-policy", app("first")).await;
        fixture.apply_policy(&ns, "second-policy", app("second")).await;
        fixture.create(&ns, &job("first", &[("app", "first")], &[("run", "5s")])).await.unwrap();
        fixture.policies(&ns).delete("first-policy", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the Job to complete", || async {
                let status = fixture.jobs(&ns).get("first").await.unwrap().status.unwrap_or_default();
                status.completion_time.map(drop).ok_or("active")
            })
            .await;
        // A later Job is deleted, so the sink has reconciled the first one as well.
        fixture.create(&ns, &job("second", &[("app", "second")], &[])).await.unwrap();
        fixture.wait_job_deleted(&ns, "second").await;
        let first = fixture.jobs(&ns).get("first").await.unwrap();
        assert_eq!(first.metadata.deletion_timestamp, None);
        assert!(fixture.config_maps(&ns).get_opt("first-results").await.unwrap().is_none());
    });
}

#[test]
fn the_summary_has_number_size_and_losses_of_results() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("summary").await.unwrap();
        fixture.apply_policy(&ns, "builds", json!({"results": {}})).await;
        fixture.create(&ns, &job("complete", &[], &[("log-bytes", "100Ki")])).await.unwrap();
        fixture.create(&ns, &job("incomplete", &[], &[("log-gone", "true")])).await.unwrap();
        fixture
            .wait("both results in the status", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                let results = status.results.ok_or("no summary")?;
                let both = (results.stored, results.incomplete) == (2, 1) && results.bytes > 100 << 10;
                if both { Ok(()) } else { Err("not yet") }
            })
            .await;
        let row = fixture.cluster.kubectl(&["get", "jobpolicy", "builds", "-n", ns.name()]).await.unwrap();
        let line = row.lines().next_back().unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert!(row.lines().next().unwrap().contains("RESULTS   SIZE"), "{row}");
        assert!(cells.contains(&"2") && cells.iter().any(|cell| cell.ends_with("Ki")), "{row}");
        let description =
            fixture.cluster.kubectl(&["describe", "jobpolicy", "builds", "-n", ns.name()]).await.unwrap();
        for words in ["Stored:", "Incomplete:", "Size:", "Ready", "FullyEnforced"] {
            assert!(description.contains(words), "{words} in {description}");
        }
        // The summary shrinks when results are deleted.
        fixture.config_maps(&ns).delete("complete-results", &DeleteParams::default()).await.unwrap();
        fixture.jobs(&ns).delete("complete", &DeleteParams::background()).await.unwrap();
        fixture
            .wait("the remaining results in the status", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                // If the sink reconciled the Job between the two deletions, it stored the result again.
                let stored = status.results.map(|results| results.stored);
                let stored_again =
                    fixture.config_maps(&ns).get_opt("complete-results").await.unwrap().is_some();
                let expected = if stored_again { 2 } else { 1 };
                if stored == Some(expected) { Ok(()) } else { Err(format!("{stored:?}, not {expected}")) }
            })
            .await;
    });
}
