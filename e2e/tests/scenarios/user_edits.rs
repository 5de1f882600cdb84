//! Results that users have edited, as they could before the admission policy was installed: the plugin reports the problem
//! and returns the readable rest, edits are not overwritten, and harvest and retention continue.

use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use super::{
    fixtures::{Fixture, job, scenario},
    kubectl_plugin::PluginUser,
};

async fn edit(fixture: &Fixture, ns: &str, name: &str, change: Value) {
    fixture.edit_past_admission_policy(ns, &format!("configmap/{name}"), &change).await;
}

/// Standard output and standard error of a call with exit code 1.
async fn output_and_errors_of_failure(user: &PluginUser, words: &[&str]) -> (String, String) {
    let output = user.kubectl(&[&["job-results"], words].concat()).await;
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn wait_event_note(fixture: &Fixture, ns: &str, reason: &str, job: &str) -> String {
    fixture
        .wait(&format!("the Event {reason} of {job}"), || async {
            let events = fixture.events(ns, reason, job).await;
            events.first().and_then(|event| event.note.clone()).ok_or("none")
        })
        .await
}

async fn results_reader(fixture: &Fixture, ns: &str) -> PluginUser {
    PluginUser::new(
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
        for name in ["logs", "manifest", "newer-schema", "unedited"] {
            fixture.create(&ns, &job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])).await.unwrap();
        }
        let mut large = job("shard", &[], &[("run", "200ms"), ("log-bytes", "12Mi")]);
        large["spec"]["template"]["spec"]["containers"] =
            json!([{"name": "main", "image": "busybox"}, {"name": "two", "image": "busybox"}]);
        fixture.create(&ns, &large).await.unwrap();
        for name in ["logs", "manifest", "newer-schema", "unedited", "shard"] {
            wait_event_note(fixture, &ns, "JobProcessing", name).await;
        }
        let user = results_reader(fixture, &ns).await;

        edit(fixture, &ns, "logs-results", json!({"data": {"logs": "as I say\n"}})).await;
        let (output, errors) = output_and_errors_of_failure(&user, &["logs", "logs"]).await;
        assert!(output.contains("as I say") && errors.contains("the digest doesn't match"), "{errors}");

        let shards = ListParams::default().labels("job-handler/shard,job-name=shard");
        let all = fixture.config_maps(&ns).list(&shards).await.unwrap().items;
        assert_eq!(all.len(), 2);
        fixture.config_maps(&ns).delete(&all[1].name_any(), &DeleteParams::default()).await.unwrap();
        let (output, errors) = output_and_errors_of_failure(&user, &["logs", "shard", "-c", "main"]).await;
        assert!(
            errors.contains(&all[1].name_any()) && errors.contains("is missing: the logs end before it"),
            "{errors}"
        );
        assert!(output.starts_with("000000001 "), "the remaining shard is read");

        edit(fixture, &ns, "manifest-results", json!({"data": {"result.json": "{\"outcome\": \"fine\"}"}}))
            .await;
        let (output, errors) = output_and_errors_of_failure(&user, &["show", "manifest"]).await;
        assert!(output.is_empty() && errors.contains("Was it edited by hand"), "{errors}");
        // The other results are listed, and the invalid one is named.
        let listed = user.kubectl(&["job-results", "list"]).await;
        let (output, errors) =
            (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
        assert!(listed.status.success() && errors.contains("manifest-results"), "{errors}");
        assert!(["logs", "shard", "unedited"].iter().all(|job| output.contains(job)), "{output}");

        // The result of a newer job-handler version: the known fields are read.
        let map = fixture.config_maps(&ns).get("newer-schema-results").await.unwrap();
        let mut manifest: Value = serde_json::from_str(&map.data.unwrap()["result.json"]).unwrap();
        manifest["schemaVersion"] = json!(99);
        manifest["unknownField"] = json!("value");
        edit(fixture, &ns, "newer-schema-results", json!({"data": {"result.json": manifest.to_string()}}))
            .await;
        let output = user.kubectl(&["job-results", "logs", "newer-schema", "-c", "main"]).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "as it was\n");
        assert!(output.status.success() && errors.contains("schema version 99"), "{errors}");
        assert_eq!(user.ok(&["job-results", "logs", "unedited", "-c", "main"]).await, "as it was\n");
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
            wait_event_note(fixture, &ns, "JobProcessing", name).await;
        }
        let api = fixture.config_maps(&ns);
        let uid = |job: &str| {
            let (api, job) = (api.clone(), format!("{job}-results"));
            async move { api.get(&job).await.unwrap().labels()["job-handler/job-uid"].clone() }
        };
        let before = api.get("deleted-results").await.unwrap();
        api.delete("deleted-results", &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the result to be stored again", || async {
                let map = api.get("deleted-results").await.map_err(|e| e.to_string())?;
                let logs = map.data.as_ref().unwrap()["logs"].contains("as it was");
                if map.uid() != before.uid() && logs { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;

        // Without our label it belongs to the user: it stays unchanged, and another result is created.
        let other_name = format!("unlabelled-results-{}", &uid("unlabelled").await[..8]);
        edit(
            fixture,
            &ns,
            "unlabelled-results",
            json!({"metadata": {"labels": {"job-handler/created": null}}}),
        )
        .await;
        let note = wait_event_note(fixture, &ns, "ResultNameTaken", "unlabelled").await;
        assert!(note.contains(&other_name), "{note}");
        let created = api.get(&other_name).await.unwrap();
        assert!(created.data.unwrap()["logs"].contains("as it was"));
        let edited = api.get("unlabelled-results").await.unwrap();
        assert!(!edited.labels().contains_key("job-handler/created"));

        // Labels without a valid manifest are not a result: before it deletes the Job, the sink stores another result.
        let other_name = format!("overwritten-results-{}", &uid("overwritten").await[..8]);
        edit(fixture, &ns, "overwritten-results", json!({"data": {"result.json": "my notes"}})).await;
        let cleanup = json!({"succeededPolicy": "AfterHarvest"});
        fixture.apply_policy(&ns, "p", json!({"results": {}, "cleanup": cleanup})).await;
        fixture.wait_job_deleted(&ns, "overwritten").await;
        let created = api.get(&other_name).await.unwrap();
        assert!(created.data.unwrap()["logs"].contains("as it was"), "harvested before it was deleted");
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
        let names = ["logs", "manifest", "note", "label"];
        for name in names {
            fixture.create(&ns, &job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])).await.unwrap();
        }
        for name in names {
            fixture.wait_job_deleted(&ns, name).await;
        }
        edit(fixture, &ns, "logs-results", json!({"data": {"logs": "as I say\n"}})).await;
        edit(fixture, &ns, "manifest-results", json!({"data": {"result.json": "my notes"}})).await;
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
            .wait("the remaining result to be deleted", || async {
                let map = api.get_opt("logs-results").await.map_err(|e| e.to_string())?;
                map.map_or(Ok(()), |_| Err("it exists".to_owned()))
            })
            .await;
        // A later result is deleted too, so retention has run again.
        fixture.create(&ns, &job("later", &[], &[("run", "200ms")])).await.unwrap();
        wait_event_note(fixture, &ns, "JobProcessing", "later").await;
        fixture
            .wait("the later result to be deleted", || async {
                let map = api.get_opt("later-results").await.map_err(|e| e.to_string())?;
                map.map_or(Ok(()), |_| Err("it exists".to_owned()))
            })
            .await;
        for name in ["manifest", "note", "label"] {
            assert!(api.get_opt(&format!("{name}-results")).await.unwrap().is_some(), "{name}: not deleted");
        }
    });
}
