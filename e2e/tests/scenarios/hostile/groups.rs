//! Whoever writes a Job writes its labels and its owner: who tries to get into the group of another one that way, or out of
//! a limit.

use job_handler_shared::keys;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt, api::PostParams};
use serde_json::{Value, json};

use super::tenant::{Tenant, assert_allowed, assert_denied};
use crate::fixtures::{Fixture, job, refusal, scenario};

const FAILS: [(&str, &str); 2] = [("run", "200ms"), ("exit-code", "1")];

/// An owner that exists; otherwise the garbage collector would delete its Jobs.
async fn owner(fixture: &Fixture, ns: &str, name: &str) -> Value {
    let config_map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    let created = fixture.config_maps(ns).create(&PostParams::default(), &config_map).await.unwrap();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": created.uid(), "controller": true})
}

fn owned(name: &str, owner: &Value, simulation: &[(&str, &str)]) -> Value {
    let mut job = job(name, &[], simulation);
    job["metadata"]["ownerReferences"] = json!([owner]);
    job
}

fn with(owner: &Value, field: &str, value: &Value) -> Value {
    let mut other = owner.clone();
    other[field] = value.clone();
    other
}

#[test]
fn only_who_names_an_owner_whole_is_in_its_group() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("owners").await.unwrap();
        let policy = json!({"group": {"type": "Owner"},
            "limits": [{"name": "one", "maxActiveJobs": 1, "scope": "Group"}]});
        fixture.apply_policy(&ns, "runs", policy).await;
        let (a, b) = (owner(fixture, &ns, "a").await, owner(fixture, &ns, "b").await);
        fixture.create(&ns, &owned("run-of-a", &a, &[("end", "Hang")])).await.unwrap();
        fixture.create(&ns, &owned("run-of-b", &b, &[("end", "Hang")])).await.unwrap();
        assert_eq!(refusal(fixture.create(&ns, &owned("second", &a, &[])).await).0, 403);

        // The run of b cannot become a second run of a. With a part of a's identity it is nobody's run.
        let tenant = Tenant::new(fixture, &ns).await;
        let rename = async |owner: &Value| {
            tenant.patch("job", "run-of-b", &json!({"metadata": {"ownerReferences": [owner]}})).await
        };
        assert_denied("the owner of another run", &rename(&a).await, "still active");
        assert_allowed("only its name", &rename(&with(&b, "name", &json!("a"))).await);
        let taken = with(&b, "name", &json!("a"));
        let refused = refusal(fixture.create(&ns, &owned("third", &taken, &[])).await);
        assert!(
            refused.0 == 403 && refused.1.contains("run-of-b"),
            "the slot moved with the Job: {refused:?}"
        );
        assert_denied("back to the whole owner", &rename(&a).await, "still active");

        // What only looks like a's run does not block a's next one.
        for (n, forged) in
            [with(&a, "apiVersion", &json!("fake.io/v1")), with(&a, "uid", &json!("u-1"))].iter().enumerate()
        {
            let name = format!("forged-{n}");
            fixture.create(&ns, &owned(&name, forged, &[("end", "Hang")])).await.unwrap();
        }
        fixture.jobs(&ns).delete("run-of-a", &kube::api::DeleteParams::foreground()).await.unwrap();
        fixture.wait_job_deleted(&ns, "run-of-a").await;
        fixture.create(&ns, &owned("next-of-a", &a, &[("end", "Hang")])).await.unwrap();
    });
}

/// The failures in a row of a group, by the ledger.
async fn failures(fixture: &Fixture, ns: &str, id: &str) -> Option<u64> {
    let arguments = ["get", "jobledger", ns, "-n", keys::NAMESPACE, "-o", "json"];
    let ledger: Value = serde_json::from_str(&fixture.cluster.kubectl(&arguments).await.unwrap()).unwrap();
    ledger["spec"]["backoff"][format!("labels:id={id}")]["failures"].as_u64()
}

async fn fail(fixture: &Fixture, ns: &str, name: &str, id: &str) {
    let mut failing = job(name, &[("id", id)], &FAILS);
    failing["spec"]["backoffLimit"] = json!(0);
    fixture.create(ns, &failing).await.unwrap();
    fixture
        .wait("the failure in the ledger", || async {
            failures(fixture, ns, id).await.filter(|n| *n == 1).map(drop).ok_or("none")
        })
        .await;
}

#[test]
fn a_finished_job_that_is_relabelled_neither_ends_nor_begins_a_backoff() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("relabelled").await.unwrap();
        let policy = json!({"group": {"type": "Labels", "labelKeys": ["id"]},
            "failureBackoff": {"initialSeconds": 600, "multiplier": 2, "maxSeconds": 3600, "action": "Reject"}});
        fixture.apply_policy(&ns, "builds", policy).await;
        fixture.create(&ns, &job("good", &[("id", "fine")], &[("run", "200ms")])).await.unwrap();
        fixture
            .wait("the Job to complete", || async {
                let job = fixture.jobs(&ns).get("good").await.map_err(|e| e.to_string())?;
                let done = job.status.and_then(|status| status.succeeded) == Some(1);
                if done { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
        fail(fixture, &ns, "bad", "waits").await;

        let tenant = Tenant::new(fixture, &ns).await;
        let relabel = async |name: &str, labels: Value| {
            tenant.patch("job", name, &json!({"metadata": {"labels": labels}})).await
        };
        assert_allowed("a label", &relabel("good", json!({"id": "waits"})).await);
        assert_allowed("a label", &relabel("bad", json!({"id": "victim"})).await);
        for name in ["good", "bad"] {
            let forged = relabel(name, json!({keys::GROUP: "victim"})).await;
            assert_denied("the group", &forged, "only job-handler sets the group");
        }
        assert_allowed("to remove the group", &relabel("good", json!({keys::GROUP: null})).await);
        let again = relabel("good", json!({keys::GROUP: "waits"})).await;
        assert_denied("to set it again", &again, "only job-handler sets the group");

        // The sink has seen all that when it records a later failure.
        fail(fixture, &ns, "later", "later").await;
        assert_eq!(failures(fixture, &ns, "waits").await, Some(1));
        assert_eq!(failures(fixture, &ns, "victim").await, None);
        assert_eq!(refusal(fixture.create(&ns, &job("next", &[("id", "waits")], &[])).await).0, 403);
        fixture.create(&ns, &job("free", &[("id", "victim")], &[])).await.unwrap();
    });
}
