//! Deletion of finished Jobs, and the summary of results in a policy's status.

use std::time::Duration;

use job_handler_e2e::{bench::cleanup_latency, wait_for};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use super::fixtures::{Fixture, PATIENCE, job, scenario};

/// Shorter than the sink's own rounds: it is done as things happen.
const SOON: Duration = Duration::from_secs(20);

async fn no_pods(fixture: &Fixture, ns: &str, name: &str) {
    let pods: Api<Pod> = Api::namespaced(fixture.client(), ns);
    let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
    fixture
        .wait(&format!("the pods of {name} to be gone"), || async {
            let left = pods.list(&of_job).await.map_err(|e| e.to_string())?.items.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
        })
        .await;
}

#[test]
fn a_failed_job_is_deleted_with_its_pods_after_its_harvest_if_the_policy_says_so() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("cleanup").await.unwrap();
        let cleanup = json!({"succeededPolicy": "Never", "failedPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "swept", json!({"results": {}, "cleanup": cleanup})).await;
        fixture.create(&ns, &job("good", &[], &[])).await.unwrap();
        let mut bad = job("bad", &[], &[("exit-code", "1")]);
        bad["spec"]["backoffLimit"] = json!(0);
        bad["spec"]["ttlSecondsAfterFinished"] = json!(100_000);
        fixture.create(&ns, &bad).await.unwrap();
        fixture.wait_result(&ns, "bad").await;
        let jobs = fixture.jobs(&ns);
        wait_for(SOON, "the failed Job to be gone", || async {
            let left = jobs.get_opt("bad").await.map_err(|e| e.to_string())?;
            left.map_or(Ok(()), |job| Err(format!("{:?}", job.metadata)))
        })
        .await
        .unwrap();
        no_pods(fixture, &ns, "bad").await;
        fixture.wait_result(&ns, "good").await;
        fixture
            .wait("the TTL to be off", || async {
                let job = jobs.get("good").await.map_err(|e| e.to_string())?;
                let ttl = job.spec.and_then(|spec| spec.ttl_seconds_after_finished);
                ttl.map_or(Ok(()), |ttl| Err(format!("{ttl}")))
            })
            .await;
        let kept = fixture.config_maps(&ns).get("bad-results").await.unwrap();
        assert_eq!(kept.data.unwrap()["status"], "failed", "what it left stays");
    });
}

/// What is measured is in the benchmarks; here, that it is done as things happen, and not when everything is looked at
/// again, half a minute later.
#[test]
fn failed_jobs_are_deleted_as_soon_as_their_results_are_stored() {
    scenario(|fixture| async move {
        const JOBS: usize = 12;
        let ns = fixture.cluster.namespace("gone-soon").await.unwrap();
        let cleanup = json!({"failedPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "swept", json!({"results": {}, "cleanup": cleanup})).await;
        let client = fixture.client();
        let fail = async {
            for n in 0..JOBS {
                let mut bad = job(&format!("bad-{n}"), &[], &[("exit-code", "1"), ("run", "3s")]);
                bad["spec"]["backoffLimit"] = json!(0);
                fixture.create(&ns, &bad).await.unwrap();
            }
        };
        let (gaps, ()) =
            tokio::join!(cleanup_latency::deletion_delays(&client, &ns, JOBS, 2 * PATIENCE), fail);
        let mut gaps: Vec<Duration> = gaps.unwrap().into_values().collect();
        gaps.sort_unstable();
        let (middle, longest) = (gaps[JOBS / 2], gaps[JOBS - 1]);
        println!(
            "{JOBS} failed Jobs were gone {middle:?} (the longest: {longest:?}) after their results were stored"
        );
        assert!(longest < Duration::from_secs(15), "{gaps:?}");
        for n in 0..JOBS {
            let kept = fixture.config_maps(&ns).get(&format!("bad-{n}-results")).await.unwrap();
            assert_eq!(kept.data.unwrap()["status"], "failed");
        }
    });
}

#[test]
fn jobs_of_a_deleted_policy_are_not_deleted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("gone-policy").await.unwrap();
        let app = |name: &str| {
            json!({"jobSelector": {"matchLabels": {"app": name}}, "results": {},
                "cleanup": {"succeededPolicy": "AfterHarvest", "failedPolicy": "AfterHarvest"}})
        };
        fixture.apply_policy(&ns, "going", app("left")).await;
        fixture.apply_policy(&ns, "staying", app("swept")).await;
        fixture.create(&ns, &job("left", &[("app", "left")], &[("run", "5s")])).await.unwrap();
        fixture.policies(&ns).delete("going", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("it to end", || async {
                let status = fixture.jobs(&ns).get("left").await.unwrap().status.unwrap_or_default();
                status.completion_time.map(drop).ok_or("runs")
            })
            .await;
        // One that began later has gone through everything meanwhile.
        fixture.create(&ns, &job("swept", &[("app", "swept")], &[])).await.unwrap();
        fixture.wait_job_deleted(&ns, "swept").await;
        let left = fixture.jobs(&ns).get("left").await.unwrap();
        assert_eq!(left.metadata.deletion_timestamp, None);
        assert!(fixture.config_maps(&ns).get_opt("left-results").await.unwrap().is_none());
    });
}

#[test]
fn the_summary_has_number_size_and_losses_of_results() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("told-results").await.unwrap();
        fixture.apply_policy(&ns, "builds", json!({"results": {}})).await;
        fixture.create(&ns, &job("whole", &[], &[("log-bytes", "100Ki")])).await.unwrap();
        fixture.create(&ns, &job("torn", &[], &[("log-gone", "true")])).await.unwrap();
        fixture
            .wait("the status to tell of both results", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                let results = status.results.ok_or("nothing")?;
                let told = (results.stored, results.incomplete) == (2, 1) && results.bytes > 100 << 10;
                if told { Ok(()) } else { Err("not yet") }
            })
            .await;
        let row = fixture.cluster.kubectl(&["get", "jobpolicy", "builds", "-n", ns.name()]).await.unwrap();
        let line = row.lines().next_back().unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert!(row.lines().next().unwrap().contains("RESULTS   SIZE"), "{row}");
        assert!(cells.contains(&"2") && cells.iter().any(|cell| cell.ends_with("Ki")), "{row}");
        let told =
            fixture.cluster.kubectl(&["describe", "jobpolicy", "builds", "-n", ns.name()]).await.unwrap();
        for words in ["Stored:", "Incomplete:", "Size:", "Ready", "FullyEnforced"] {
            assert!(told.contains(words), "{words} in {told}");
        }
        // The summary shrinks when results are deleted.
        fixture.config_maps(&ns).delete("whole-results", &DeleteParams::default()).await.unwrap();
        fixture.jobs(&ns).delete("whole", &DeleteParams::background()).await.unwrap();
        fixture
            .wait("the status to tell of what is left", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                // Where the Job outlived its result by a moment, the result is there again.
                let stored = status.results.map(|results| results.stored);
                let there = fixture.config_maps(&ns).get_opt("whole-results").await.unwrap().is_some();
                let expected = if there { 2 } else { 1 };
                if stored == Some(expected) { Ok(()) } else { Err(format!("{stored:?}, not {expected}")) }
            })
            .await;
    });
}
