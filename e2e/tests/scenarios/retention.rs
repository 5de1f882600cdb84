//! Which stored results are deleted, and which are kept.

use std::collections::BTreeSet;

use job_handler_e2e::wait_for;
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::fixtures::{Fixture, PATIENCE, annotation, job, scenario};

async fn results(fixture: &Fixture, ns: &str) -> Result<BTreeSet<String>, String> {
    let params = ListParams::default().labels("job-handler/created=true");
    let all = fixture.config_maps(ns).list(&params).await.map_err(|error| error.to_string())?;
    Ok(all.items.iter().map(ResourceExt::name_any).collect())
}

async fn wait_results(fixture: &Fixture, ns: &str, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| format!("{name}-results")).collect();
    let poll = || async {
        let now = results(fixture, ns).await?;
        if now == expected { Ok(()) } else { Err(format!("{now:?}")) }
    };
    wait_for(3 * PATIENCE, &format!("only the results of {names:?} to remain"), poll).await.unwrap();
}

/// Runs a Job and waits until its result is stored and the next second begins, so that Jobs have different ages.
async fn run(fixture: &Fixture, ns: &str, name: &str, build: &str, log: &str) {
    fixture.create(ns, &job(name, &[("build", build)], &[("run", "100ms"), ("log", log)])).await.unwrap();
    let published = || async {
        let result =
            fixture.config_maps(ns).get(&format!("{name}-results")).await.map_err(|e| e.to_string())?;
        if result.labels().contains_key("job-handler/announce") {
            Err("the Event is pending".to_owned())
        } else {
            Ok(())
        }
    };
    wait_for(2 * PATIENCE, &format!("the result of {name}"), published).await.unwrap();
    // Jobs are ordered by creation time in seconds, then by their random uids.
    let created = fixture.jobs(ns).get(name).await.unwrap().creation_timestamp().unwrap().0;
    let later = || async {
        let since = jiff::Timestamp::now().duration_since(created).as_millis();
        if since > 1_000 { Ok(()) } else { Err(since) }
    };
    wait_for(PATIENCE, "the next second", later).await.unwrap();
}

fn policy_with_results(results: &Value) -> Value {
    json!({"group": {"type": "Labels", "labelKeys": ["build"]}, "results": results})
}

#[test]
fn a_group_keeps_its_newest_results_and_its_jobs_are_not_harvested_again() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("number").await.unwrap();
        fixture.apply_policy(&ns, "p", policy_with_results(&json!({"maxPerGroup": 2}))).await;
        run(fixture, &ns, "other-1", "b", "x\n").await;
        for n in 1..=4 {
            run(fixture, &ns, &format!("run-{n}"), "a", "x\n").await;
        }
        wait_results(fixture, &ns, &["other-1", "run-3", "run-4"]).await;
        let first = fixture.jobs(&ns).get("run-1").await.unwrap();
        assert_eq!(annotation(&first, "job-handler/result-retired"), first.uid().unwrap());
        // The Jobs still exist, and later runs do not cause another harvest.
        run(fixture, &ns, "run-5", "a", "x\n").await;
        wait_results(fixture, &ns, &["other-1", "run-4", "run-5"]).await;
        assert_eq!(fixture.events(&ns, "JobProcessing", "run-1").await.len(), 1);
    });
}

#[test]
fn old_results_are_deleted_and_the_newest_of_a_group_is_kept() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("age").await.unwrap();
        fixture.apply_policy(&ns, "p", policy_with_results(&json!({}))).await;
        for name in ["run-1", "run-2"] {
            run(fixture, &ns, name, "a", "x\n").await;
        }
        wait_results(fixture, &ns, &["run-1", "run-2"]).await;
        // The current policy applies to existing results.
        fixture.apply_policy(&ns, "p", policy_with_results(&json!({"ttlSeconds": 1}))).await;
        wait_results(fixture, &ns, &["run-2"]).await;
    });
}

#[test]
fn results_of_a_namespace_stay_within_max_bytes_per_namespace() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("bytes").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {"maxBytesPerNamespace": "100Ki"}})).await;
        let log = "0123456789abcde\n".repeat(40 << 6);
        for n in 1..=4 {
            run(fixture, &ns, &format!("run-{n}"), "a", &log).await;
        }
        wait_results(fixture, &ns, &["run-3", "run-4"]).await;
    });
}

#[test]
fn only_shards_without_a_result_are_deleted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("shards").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        let api = fixture.config_maps(&ns);
        for (name, labels) in [
            ("orphan-results-0000-0", json!({"job-handler/shard": "0", "job-handler/job-uid": "0000"})),
            ("mine", json!({"job-handler/job-uid": "0000"})),
            ("mine-too", json!({"job-handler/shard": "0"})),
        ] {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "labels": labels}, "data": {"a": "b"}});
            fixture.create_past_admission_policy(&ns, &map).await;
        }
        let deleted = || async {
            match api.get_opt("orphan-results-0000-0").await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        };
        // A shard is deleted after two checks, a minute apart, have found no result.
        wait_for(8 * PATIENCE, "the shard to be deleted", deleted).await.unwrap();
        for name in ["mine", "mine-too"] {
            assert!(api.get_opt(name).await.unwrap().is_some(), "{name}");
        }
    });
}
