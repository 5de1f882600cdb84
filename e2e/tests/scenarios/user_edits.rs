//! Results that users have edited: reading them reports what is wrong and returns the rest, edits are not overwritten, and harvest and retention keep working.

use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    fixtures::{Fixture, job, scenario},
    kubectl_plugin::Person,
};

async fn edit(fixture: &Fixture, ns: &str, name: &str, change: Value) {
    fixture.config_maps(ns).patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

/// Standard output and standard error of a call with exit code 1.
async fn torn(person: &Person, words: &[&str]) -> (String, String) {
    let output = person.kubectl(&[&["job-results"], words].concat()).await;
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn told(fixture: &Fixture, ns: &str, reason: &str, job: &str) -> String {
    fixture
        .wait(&format!("the Event {reason} of {job}"), || async {
            let events = fixture.events(ns, reason, job).await;
            events.first().and_then(|event| event.note.clone()).ok_or("none")
        })
        .await
}

async fn person(fixture: &Fixture, ns: &str) -> Person {
    Person::new(
        fixture,
        ns,
        json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]),
    )
    .await
}

#[test]
fn an_edited_result_is_reported_and_still_readable() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("edited").await.unwrap();
        let logs = json!({"maxBytesPerContainer": "16Mi", "maxBytesPerJob": "64Mi"});
        fixture.apply_policy(&ns, "p", json!({"results": {"logs": logs}})).await;
        for name in ["logs", "facts", "newer", "whole"] {
            fixture.create(&ns, &job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])).await.unwrap();
        }
        let mut large = job("shard", &[], &[("run", "200ms"), ("log-bytes", "12Mi")]);
        large["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "main", "image": "busybox"}, {"name": "two", "image": "busybox"}]);
        fixture.create(&ns, &large).await.unwrap();
        for name in ["logs", "facts", "newer", "whole", "shard"] {
            told(fixture, &ns, "JobProcessing", name).await;
        }
        let person = person(fixture, &ns).await;

        edit(fixture, &ns, "logs-results", json!({"data": {"logs": "as I say\n"}})).await;
        let (out, said) = torn(&person, &["logs", "logs"]).await;
        assert!(out.contains("as I say") && said.contains("the digest doesn't match"), "{said}");

        let shards = ListParams::default().labels("job-handler/shard,job-name=shard");
        let all = fixture.config_maps(&ns).list(&shards).await.unwrap().items;
        assert_eq!(all.len(), 2);
        fixture.config_maps(&ns).delete(&all[1].name_any(), &DeleteParams::default()).await.unwrap();
        let (out, said) = torn(&person, &["logs", "shard", "-c", "main"]).await;
        assert!(
            said.contains(&all[1].name_any()) && said.contains("is missing: the logs end before it"),
            "{said}"
        );
        assert!(out.starts_with("000000001 "), "what is left is read");

        edit(fixture, &ns, "facts-results", json!({"data": {"result.json": "{\"outcome\": \"fine\"}"}}))
            .await;
        let (out, said) = torn(&person, &["show", "facts"]).await;
        assert!(out.is_empty() && said.contains("Was it edited by hand"), "{said}");
        // It hides no other: they are listed, and this one is named.
        let listed = person.kubectl(&["job-results", "list"]).await;
        let (out, said) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
        assert!(listed.status.success() && said.contains("facts-results"), "{said}");
        assert!(["logs", "shard", "whole"].iter().all(|job| out.contains(job)), "{out}");

        // Of a job-handler that is not there yet: read as far as it is understood.
        let map = fixture.config_maps(&ns).get("newer-results").await.unwrap();
        let mut facts: Value = serde_json::from_str(&map.data.unwrap()["result.json"]).unwrap();
        facts["schemaVersion"] = json!(99);
        facts["mood"] = json!("good");
        edit(fixture, &ns, "newer-results", json!({"data": {"result.json": facts.to_string()}})).await;
        let output = person.kubectl(&["job-results", "logs", "newer", "-c", "main"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "as it was\n");
        assert!(output.status.success() && said.contains("schema version 99"), "{said}");
        assert_eq!(person.ok(&["job-results", "logs", "whole", "-c", "main"]).await, "as it was\n");
    });
}

#[test]
fn a_job_is_harvested_again_when_its_result_was_deleted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("again").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        for name in ["deleted", "unlabelled", "overwritten"] {
            fixture.create(&ns, &job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])).await.unwrap();
        }
        for name in ["deleted", "unlabelled", "overwritten"] {
            told(fixture, &ns, "JobProcessing", name).await;
        }
        let api = fixture.config_maps(&ns);
        let uid = |job: &str| {
            let (api, job) = (api.clone(), format!("{job}-results"));
            async move { api.get(&job).await.unwrap().labels()["job-handler/job-uid"].clone() }
        };
        let before = api.get("deleted-results").await.unwrap();
        api.delete("deleted-results", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the result to be there again", || async {
                let map = api.get("deleted-results").await.map_err(|e| e.to_string())?;
                let logs = map.data.as_ref().unwrap()["logs"].contains("as it was");
                if map.uid() != before.uid() && logs { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;

        // Without our label it belongs to the user: it stays unchanged, and another result is created.
        let beside = format!("unlabelled-results-{}", &uid("unlabelled").await[..8]);
        edit(
            fixture,
            &ns,
            "unlabelled-results",
            json!({"metadata": {"labels": {"job-handler/created": null}}}),
        )
        .await;
        let note = told(fixture, &ns, "ResultNameTaken", "unlabelled").await;
        assert!(note.contains(&beside), "{note}");
        let made = api.get(&beside).await.unwrap();
        assert!(made.data.unwrap()["logs"].contains("as it was"));
        let theirs = api.get("unlabelled-results").await.unwrap();
        assert!(!theirs.labels().contains_key("job-handler/created"));

        // Labels alone are not a result: the sink notices before it deletes the Job, and creates another result.
        let beside = format!("overwritten-results-{}", &uid("overwritten").await[..8]);
        edit(fixture, &ns, "overwritten-results", json!({"data": {"result.json": "my notes"}})).await;
        let cleanup = json!({"succeededPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "p", json!({"results": {}, "cleanup": cleanup})).await;
        fixture.wait_job_deleted(&ns, "overwritten").await;
        let made = api.get(&beside).await.unwrap();
        assert!(made.data.unwrap()["logs"].contains("as it was"), "harvested before it was deleted");
        assert_eq!(api.get("overwritten-results").await.unwrap().data.unwrap()["result.json"], "my notes");
    });
}

#[test]
fn retention_keeps_config_maps_that_users_have_taken_over() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("retain-edited").await.unwrap();
        fixture
            .apply_policy(&ns, "p", json!({"results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"}}))
            .await;
        let names = ["logs", "facts", "note", "label"];
        for name in names {
            fixture.create(&ns, &job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])).await.unwrap();
        }
        for name in names {
            fixture.wait_job_deleted(&ns, name).await;
        }
        edit(fixture, &ns, "logs-results", json!({"data": {"logs": "as I say\n"}})).await;
        edit(fixture, &ns, "facts-results", json!({"data": {"result.json": "my notes"}})).await;
        edit(
            fixture,
            &ns,
            "note-results",
            json!({"metadata": {"annotations": {"job-handler/retention": "for ever"}}}),
        )
        .await;
        edit(fixture, &ns, "label-results", json!({"metadata": {"labels": {"job-handler/created": null}}}))
            .await;
        fixture.apply_policy(&ns, "p", json!({"results": {"ttlSeconds": 1}})).await;
        let api = fixture.config_maps(&ns);
        fixture
            .wait("the one that is still a result to be gone", || async {
                let there = api.get_opt("logs-results").await.map_err(|e| e.to_string())?;
                there.map_or(Ok(()), |_| Err("it is there".to_owned()))
            })
            .await;
        // A later one is deleted too, so retention has run again.
        fixture.create(&ns, &job("later", &[], &[("run", "200ms")])).await.unwrap();
        told(fixture, &ns, "JobProcessing", "later").await;
        fixture
            .wait("the later one to be gone", || async {
                let there = api.get_opt("later-results").await.map_err(|e| e.to_string())?;
                there.map_or(Ok(()), |_| Err("it is there".to_owned()))
            })
            .await;
        for name in ["facts", "note", "label"] {
            assert!(api.get_opt(&format!("{name}-results")).await.unwrap().is_some(), "{name}: theirs");
        }
    });
}
