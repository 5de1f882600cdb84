//! Failure backoff: a group waits after failures, even if the failed Job was deleted; a newer run of a group replaces
//! the older ones.

use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::join_all;
use job_handler_shared::{keys, ledger::crd::JobLedger};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, refusal, scenario};

const FAILS: [(&str, &str); 2] = [("run", "200ms"), ("exit-code", "1")];

async fn run_failing_job(fixture: &Fixture, namespace: &str, name: &str) {
    let mut failing = job(name, &[("id", "7")], &FAILS);
    failing["spec"]["backoffLimit"] = json!(0);
    fixture.create(namespace, &failing).await.unwrap();
    wait_failed(fixture, namespace, name).await;
}

async fn wait_failed(fixture: &Fixture, namespace: &str, name: &str) {
    fixture
        .wait(&format!("{name} to fail"), || async {
            let job = fixture.jobs(namespace).get(name).await.map_err(|e| e.to_string())?;
            let conditions = job.status.and_then(|status| status.conditions).unwrap_or_default();
            let failed = conditions.iter().any(|c| c.type_ == "Failed" && c.status == "True");
            if failed { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await;
}

fn policy(initial: u32, action: &str) -> Value {
    json!({
        "group": {"type": "Labels", "labelKeys": ["id"]},
        "failureBackoff": {"initialSeconds": initial, "multiplier": 2, "maxSeconds": 3600, "action": action},
    })
}

#[test]
fn a_deleted_failed_job_still_counts_for_the_backoff() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("backoff").await.unwrap();
        fixture.apply_policy(&ns, "builds", policy(300, "Reject")).await;
        run_failing_job(fixture, &ns, "first").await;
        let (code, message) = refusal(fixture.create(&ns, &job("early", &[("id", "7")], &[])).await);
        assert_eq!(code, 403);
        assert!(message.contains("failure backoff: group 7 failed 1 time (last: first)"), "{message}");
        assert!(message.contains("the next try is allowed in "), "{message}");
        // Deleted immediately: the watch delivers the failure before the deletion.
        fixture.jobs(&ns).delete("first", &DeleteParams::background()).await.unwrap();
        fixture.wait_job_deleted(&ns, "first").await;
        let ledger = fixture
            .wait("the failure in the ledger", || async {
                let args = ["get", "jobledger", ns.name(), "-n", keys::NAMESPACE, "-o", "json"];
                let text = fixture.cluster.kubectl(&args).await.map_err(|e| e.to_string())?;
                let ledger: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
                let entry = ledger["spec"]["backoff"]["labels:id=7"].clone();
                if entry["failures"] == 1 { Ok(entry) } else { Err(text) }
            })
            .await;
        assert_eq!(ledger["job"], "first");
        let (code, message) = refusal(fixture.create(&ns, &job("early", &[("id", "7")], &[])).await);
        assert!(code == 403 && message.contains("failed 1 time (last: first)"), "{message}");
        fixture.create(&ns, &job("other", &[("id", "8")], &[])).await.unwrap();
        // Without a failureBackoff the ledger drops the entry.
        fixture.apply_policy(&ns, "builds", json!({})).await;
        fixture
            .wait("the ledger to drop the failure", || async {
                let args = ["get", "jobledger", ns.name(), "-n", keys::NAMESPACE, "-o", "json"];
                let text = fixture.cluster.kubectl(&args).await.map_err(|e| e.to_string())?;
                if text.contains("labels:id=7") { Err(text) } else { Ok(()) }
            })
            .await;
        fixture.create(&ns, &job("early", &[("id", "7")], &[])).await.unwrap();
    });
}

#[test]
fn a_failure_is_recorded_in_a_ledger_that_changes_all_the_time() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("busy-ledger").await.unwrap();
        fixture.apply_policy(&ns, "builds", policy(300, "Reject")).await;
        // The first create of a namespace creates its ledger.
        fixture.create(&ns, &job("before", &[("id", "8")], &[])).await.unwrap();
        let ledgers: Api<JobLedger> = Api::namespaced(fixture.client(), keys::NAMESPACE);
        let writes = AtomicU32::new(0);
        let churn = || async {
            loop {
                let number = writes.fetch_add(1, Ordering::Relaxed).to_string();
                let change = json!({"metadata": {"annotations": {"number": number}}});
                ledgers.patch(ns.name(), &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
            }
        };
        let recorded = async {
            for group in ["1", "2", "3", "4"] {
                let mut failing = job(&format!("run-{group}"), &[("id", group)], &FAILS);
                failing["spec"]["backoffLimit"] = json!(0);
                fixture.create(&ns, &failing).await.unwrap();
                fixture
                    .wait("the failure in the ledger", || async {
                        let ledger = ledgers.get(ns.name()).await.map_err(|e| e.to_string())?;
                        let backoff =
                            &serde_json::to_value(&ledger.spec).map_err(|e| e.to_string())?["backoff"];
                        let entry = &backoff[format!("labels:id={group}")];
                        if entry["failures"] == 1 { Ok(()) } else { Err(backoff.to_string()) }
                    })
                    .await;
            }
        };
        tokio::select! {
            _ = join_all((0..4).map(|_| churn())) => unreachable!("they never end"),
            () = recorded => {}
        }
    });
}

#[test]
fn a_queued_job_is_released_after_the_backoff_and_a_success_resets_it() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("backoffq").await.unwrap();
        fixture.apply_policy(&ns, "builds", policy(8, "Queue")).await;
        run_failing_job(fixture, &ns, "first").await;
        let queued = fixture.create(&ns, &job("second", &[("id", "7")], &[("run", "200ms")])).await.unwrap();
        assert_eq!(queued.spec.unwrap().suspend, Some(true));
        let started = |name: &'static str| {
            let jobs = fixture.jobs(&ns);
            async move {
                fixture
                    .wait(&format!("{name} to be started"), || async {
                        let job = jobs.get(name).await.map_err(|e| e.to_string())?;
                        let suspended = job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or_default();
                        if suspended { Err("suspended".to_owned()) } else { Ok(job) }
                    })
                    .await
            }
        };
        let note = fixture
            .wait("the Event with the reason", || async {
                let events = fixture.events(&ns, "JobQueued", "second").await;
                events.into_iter().find_map(|event| event.note).ok_or("none")
            })
            .await;
        assert!(note.contains("queued: failure backoff: group 7 failed 1 time (last: first)"), "{note}");
        let second = started("second").await;
        let conditions = fixture.jobs(&ns).get("first").await.unwrap().status.unwrap().conditions.unwrap();
        let failed_at =
            conditions.iter().find(|c| c.type_ == "Failed").unwrap().last_transition_time.clone().unwrap();
        if let Some(started_at) = second.status.and_then(|status| status.start_time) {
            assert!(started_at.0.as_second() - failed_at.0.as_second() >= 8, "{started_at:?} {failed_at:?}");
        }
        fixture
            .wait("the second to complete", || async {
                let job = fixture.jobs(&ns).get("second").await.unwrap();
                let completed_at = job.status.and_then(|status| status.completion_time);
                completed_at.map(drop).ok_or("not yet")
            })
            .await;
        // After a success no Job waits.
        fixture.create(&ns, &job("third", &[("id", "7")], &[("run", "200ms")])).await.unwrap();
        started("third").await;
        assert!(fixture.events(&ns, "JobQueued", "third").await.is_empty());
    });
}

#[test]
fn a_newer_run_prunes_the_older_ones_and_frees_their_names() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("dedup").await.unwrap();
        let spec = json!({
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [{"name": "one-each", "maxActiveJobs": 1, "scope": "Group"}],
            "results": {}, "cleanup": {"succeededPolicy": "AfterTTL", "failedPolicy": "Never", "keep": {"newest": 1}},
        });
        fixture.apply_policy(&ns, "builds", spec).await;
        let run = |name: &'static str, seconds: &'static str| job(name, &[("id", "7")], &[("run", seconds)]);
        fixture.create(&ns, &run("one", "200ms")).await.unwrap();
        fixture.wait_result(&ns, "one").await;
        assert!(fixture.jobs(&ns).get("one").await.is_ok(), "the newest is kept");
        fixture.wait("a slot of the group", || async { fixture.create(&ns, &run("two", "60s")).await }).await;
        fixture.wait_job_deleted(&ns, "one").await;
        // The old name is refused while the group has an active Job, and admitted afterwards.
        let (code, message) = refusal(fixture.create(&ns, &run("one", "200ms")).await);
        assert!(
            code == 403 && message.contains("duplicate job: two of group 7 is still active"),
            "{message}"
        );
        let end = json!({"spec": {"activeDeadlineSeconds": 1}});
        fixture.jobs(&ns).patch("two", &PatchParams::default(), &Patch::Merge(&end)).await.unwrap();
        fixture
            .wait("recreation under the old name", || async { fixture.create(&ns, &run("one", "60s")).await })
            .await;
        fixture.wait_job_deleted(&ns, "two").await;
        let result = fixture.wait_result(&ns, "two").await;
        assert_eq!(result.data.unwrap()["status"], "failed");
    });
}
