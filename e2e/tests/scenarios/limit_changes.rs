//! Policies that change while Jobs run: running Jobs continue, and once the policy is `Ready` it applies.

use job_handler_shared::keys;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, refusal, scenario};

const RUNNING: [(&str, &str); 1] = [("run", "300s")];

fn limit(app: &str, max: u32) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": app}}, "limits": [{"name": "few", "maxActiveJobs": max}]})
}

async fn create(fixture: &Fixture, namespace: &str, name: &str, app: &str) -> Result<(), String> {
    match fixture.create(namespace, &job(name, &[("app", app)], &RUNNING)).await {
        Ok(_) => Ok(()),
        refused => Err(refusal(refused).1),
    }
}

async fn wait_over_limit(fixture: &Fixture, namespace: &str, policy: &str, expected: &str) -> String {
    fixture
        .wait(&format!("OverLimit to be {expected}"), || async {
            let status = fixture.policies(namespace).get(policy).await.unwrap().status.unwrap_or_default();
            let over =
                status.conditions.into_iter().find(|c| c.type_ == "OverLimit").ok_or("no condition")?;
            if over.status == expected { Ok(over.message) } else { Err("not yet") }
        })
        .await
}

async fn assert_all_running(fixture: &Fixture, namespace: &str, names: &[&str]) {
    for name in names {
        let job = fixture.jobs(namespace).get(name).await.unwrap();
        assert!(job.metadata.deletion_timestamp.is_none(), "{name} is being deleted");
        assert_ne!(job.spec.unwrap().suspend, Some(true), "{name} was suspended");
        let conditions = job.status.and_then(|status| status.conditions).unwrap_or_default();
        let finished = conditions.iter().find(|c| c.type_ != "Suspended" && c.status == "True");
        assert!(finished.is_none(), "{name} finished: {finished:?}");
    }
}

#[test]
fn a_limit_can_be_lowered_below_its_use_and_raised_again() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("lowered").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 3)).await;
        for name in ["one", "two", "three"] {
            create(fixture, &ns, name, "a").await.unwrap();
        }
        fixture.apply_policy(&ns, "builds", limit("a", 1)).await;
        let refused = create(fixture, &ns, "four", "a").await.unwrap_err();
        assert!(refused.contains("3 active jobs, max allowed: 1"), "{refused}");
        let message = wait_over_limit(fixture, &ns, "builds", "True").await;
        assert!(message.contains("3 active jobs, max allowed: 1"), "{message}");
        assert_all_running(fixture, &ns, &["one", "two", "three"]).await;
        fixture.apply_policy(&ns, "builds", limit("a", 4)).await;
        create(fixture, &ns, "four", "a").await.unwrap();
        let refused = create(fixture, &ns, "five", "a").await.unwrap_err();
        assert!(refused.contains("4 active jobs, max allowed: 4"), "{refused}");
        wait_over_limit(fixture, &ns, "builds", "False").await;
        assert_all_running(fixture, &ns, &["one", "two", "three", "four"]).await;
    });
}

#[test]
fn a_changed_selector_counts_the_jobs_it_selects() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("selector").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 1)).await;
        create(fixture, &ns, "a1", "a").await.unwrap();
        create(fixture, &ns, "b1", "b").await.unwrap();
        create(fixture, &ns, "b2", "b").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("b", 1)).await;
        create(fixture, &ns, "a2", "a").await.unwrap();
        let refused = create(fixture, &ns, "b3", "b").await.unwrap_err();
        assert!(refused.contains("2 active jobs, max allowed: 1"), "{refused}");
        wait_over_limit(fixture, &ns, "builds", "True").await;
        assert_all_running(fixture, &ns, &["a1", "a2", "b1", "b2"]).await;
    });
}

#[test]
fn a_policy_can_be_deleted_recreated_and_renamed() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("renamed").await.unwrap();
        fixture.apply_policy(&ns, "old", limit("a", 1)).await;
        create(fixture, &ns, "one", "a").await.unwrap();
        create(fixture, &ns, "two", "a").await.unwrap_err();
        // The new policy counts the running Job before the old policy is deleted.
        fixture.apply_policy(&ns, "new", limit("a", 1)).await;
        fixture.policies(&ns).delete("old", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("a refusal by the new policy only", || async {
                let refused = create(fixture, &ns, "two", "a").await.expect_err("the slot is taken");
                if refused.contains("/new") { Ok(()) } else { Err(refused) }
            })
            .await;
        fixture.policies(&ns).delete("new", &DeleteParams::default()).await.unwrap();
        fixture.wait("the Job to be admitted", || async { create(fixture, &ns, "two", "a").await }).await;
        // The recreated policy counts the Jobs that were created meanwhile.
        fixture.apply_policy(&ns, "new", limit("a", 1)).await;
        let refused = create(fixture, &ns, "three", "a").await.unwrap_err();
        assert!(refused.contains("2 active jobs, max allowed: 1"), "{refused}");
        let message = wait_over_limit(fixture, &ns, "new", "True").await;
        assert!(message.contains("2 active jobs"), "{message}");
        assert_all_running(fixture, &ns, &["one", "two"]).await;
    });
}

#[test]
fn a_limit_renamed_and_changed_to_queue_counts_existing_jobs() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("relimit").await.unwrap();
        fixture.apply_policy(&ns, "builds", json!({"limits": [{"name": "few", "maxActiveJobs": 2}]})).await;
        create(fixture, &ns, "one", "a").await.unwrap();
        create(fixture, &ns, "two", "a").await.unwrap();
        let queue = json!({"limits": [{"name": "queue", "maxActiveJobs": 2, "whenFull": "Queue"}]});
        fixture.apply_policy(&ns, "builds", queue).await;
        create(fixture, &ns, "three", "a").await.unwrap();
        let note = fixture
            .wait("the Event with its position", || async {
                let events = fixture.events(&ns, keys::REASON_QUEUED, "three").await;
                events.into_iter().find_map(|event| event.note).ok_or("none")
            })
            .await;
        assert!(note.starts_with("position 1 in the queue; slots held by "), "{note}");
        assert!(note.contains("(limit \"queue\" of JobPolicy") && note.ends_with(", 2 slots)"), "{note}");
        // Jobs that are created in the same second are ordered by uid.
        let holders = ["held by one, two", "held by two, one"];
        assert!(holders.iter().any(|holders| note.contains(holders)), "{note}");
        assert_all_running(fixture, &ns, &["one", "two"]).await;
        // Queued Jobs are released when the limit is removed.
        let patch = json!({"spec": {"limits": null}});
        fixture.policies(&ns).patch("builds", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        fixture
            .wait("the queued one to start", || async {
                let three = fixture.jobs(&ns).get("three").await.unwrap();
                if three.spec.unwrap().suspend == Some(true) { Err("suspended") } else { Ok(()) }
            })
            .await;
        assert_all_running(fixture, &ns, &["one", "two", "three"]).await;
    });
}

#[test]
fn admissions_without_a_job_are_shown_as_pending() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("pending").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 5)).await;
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
            "spec": {"hard": {"count/jobs.batch": "0"}}});
        fixture
            .cluster
            .kubectl_with_input(&["create", "-n", &ns, "-f", "-"], &quota.to_string())
            .await
            .unwrap();
        fixture
            .wait("the quota to deny", || async {
                match create(fixture, &ns, "denied", "a").await {
                    Err(message) if message.contains("exceeded quota") => Ok(()),
                    other => {
                        drop(fixture.jobs(&ns).delete("denied", &DeleteParams::background()).await);
                        Err(format!("{other:?}"))
                    }
                }
            })
            .await;
        fixture
            .wait("the pending admission in the status", || async {
                let status = fixture.policies(&ns).get("builds").await.unwrap().status.unwrap_or_default();
                match status.limits.first() {
                    Some(limit) if limit.pending == 1 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
    });
}

#[test]
fn the_ledger_of_a_deleted_namespace_is_deleted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("ledger-gc").await.unwrap();
        fixture.apply_policy(&ns, "builds", limit("a", 5)).await;
        create(fixture, &ns, "one", "a").await.unwrap();
        let name = ns.name().to_owned();
        let get = ["get", "jobledger", &name, "-n", keys::NAMESPACE];
        fixture.cluster.kubectl(&get).await.unwrap();
        fixture.cluster.kubectl(&["delete", "namespace", &name]).await.unwrap();
        let patience = std::time::Duration::from_secs(240);
        job_handler_e2e::wait_for(patience, "the ledger to be deleted", || async {
            let args = ["get", "jobledger", &name, "-n", keys::NAMESPACE, "--ignore-not-found", "-o", "name"];
            let output = fixture.cluster.kubectl(&args).await.map_err(|e| e.to_string())?;
            if output.trim().is_empty() { Ok(()) } else { Err(output) }
        })
        .await
        .unwrap();
    });
}
