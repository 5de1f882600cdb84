//! Results in Secrets: with the opt-in rights they are stored only there, and read, published as Events and deleted
//! like those in ConfigMaps; without the rights no output of containers is published.

use job_handler_e2e::{
    harness::ports,
    pair::{allow_secrets, forbid_secrets},
    wait_for,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use super::{
    cloudevents::{Receiver, with_receiver},
    fixtures::{Fixture, PATIENCE, annotation, exclusive_scenario_with_own_cluster, job, scenario},
    kubectl_plugin::PluginUser,
};

/// The log and the termination message of containers.
const LOG_TEXT: &str = "password=hunter2";
const TERMINATION_MESSAGE: &str = "token=abc123";

/// A failing Job with secrets in its log and termination message.
fn job_with_secrets(name: &str, app: &str) -> Value {
    let log = format!("starting\n{LOG_TEXT}\n");
    let simulation = [
        ("run", "200ms"),
        ("exit-code", "3"),
        ("log", log.as_str()),
        ("termination-message", TERMINATION_MESSAGE),
    ];
    let mut job = job(name, &[("app", app)], &simulation);
    job["spec"]["backoffLimit"] = json!(0);
    job
}

/// A Job whose logs need shards.
fn large(name: &str, app: &str) -> Value {
    let mut large = job(name, &[("app", app)], &[("run", "200ms"), ("log-bytes", "12Mi")]);
    large["spec"]["template"]["spec"]["containers"] =
        json!([{"name": "main", "image": "busybox"}, {"name": "two", "image": "busybox"}]);
    large
}

fn policy(app: &str, results: Value) -> Value {
    json!({"jobSelector": {"matchLabels": {"app": app}}, "results": results, "cloudEventSinks": [{"name": "ci"}]})
}

/// Waits until the condition FullyEnforced reports missing rights to Secrets (`missing`), or does not.
async fn wait_secrets_missing(fixture: &Fixture, ns: &str, policy: &str, missing: bool) -> String {
    fixture
        .wait(&format!("the policy to report missing rights to Secrets: {missing}"), || async {
            let status = fixture.policies(ns).get(policy).await.map_err(|e| e.to_string())?.status;
            let conditions = status.unwrap_or_default().conditions;
            let condition =
                conditions.into_iter().find(|c| c.type_ == "FullyEnforced").ok_or("no condition")?;
            if (condition.reason == "NoSecrets") == missing {
                Ok(condition.message)
            } else {
                Err(format!("{condition:?}"))
            }
        })
        .await
}

async fn wait_event_note(fixture: &Fixture, ns: &str, job: &str) -> String {
    fixture
        .wait(&format!("the Event of {job}"), || async {
            let events = fixture.events(ns, "JobProcessing", job).await;
            events.first().and_then(|event| event.note.clone()).ok_or("none")
        })
        .await
}

#[test]
fn without_the_right_to_secrets_no_container_output_is_published() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("no-secrets").await.unwrap();
        fixture.apply_policy(&ns, "hidden", policy("hidden", json!({"storageType": "Secret"}))).await;
        let message = wait_secrets_missing(fixture, &ns, "hidden", true).await;
        assert!(
            message.contains("no right to") && message.contains("apply manifests/overlays/secrets"),
            "{message}"
        );

        fixture.create(&ns, &job_with_secrets("build", "hidden")).await.unwrap();
        let note = wait_event_note(fixture, &ns, "build").await;
        assert!(note.contains("exit code 3") && note.contains("could not be kept"), "{note}");
        let result = fixture.wait_result(&ns, "build").await;
        let manifest: Value = serde_json::from_str(&result.data.as_ref().unwrap()["result.json"]).unwrap();
        assert_eq!(result.data.as_ref().unwrap()["status"], "failed");
        let lost = manifest["completeness"]["lost"].to_string();
        assert!(
            lost.contains("were to be kept in a Secret") && lost.contains("manifests/overlays"),
            "{lost}"
        );
        for resources in ["configmaps", "events", "events.events.k8s.io", "secrets"] {
            let all =
                fixture.cluster.kubectl(&["get", resources, "-n", ns.name(), "-o", "json"]).await.unwrap();
            assert!(!all.contains(LOG_TEXT) && !all.contains(TERMINATION_MESSAGE), "{resources}: {all}");
        }
        let (_, metrics) = fixture.pair.sink().get("/metrics").await.unwrap();
        let line =
            metrics.lines().find(|line| line.starts_with("job_handler_results_withheld_total")).unwrap();
        assert_ne!(line, "job_handler_results_withheld_total 0");
    });
}

#[test]
fn with_the_right_to_secrets_results_are_in_secrets_only() {
    exclusive_scenario_with_own_cluster(async || {
        let folder = tempfile::tempdir().unwrap();
        let port = ports::free().unwrap();
        let (receiver, ca) = Receiver::new(folder.path(), port);
        let _process = receiver.start();
        let configuration = json!({"cloudEventSinks": [{"name": "ci", "url": format!("https://127.0.0.1:{port}/in"),
            "tls": {"ca": ca}, "bearerToken": {"key": "ci"}}]});
        let fixture = with_receiver(&configuration).await;
        let ns = fixture.cluster.namespace("secrets").await.unwrap();
        let logs = json!({"maxBytesPerContainer": "16Mi", "maxBytesPerJob": "64Mi"});
        fixture.apply_policy(&ns, "open", policy("open", json!({"logs": logs}))).await;
        let hidden = |more: Value| {
            let mut results = json!({"storageType": "Secret", "logs": logs});
            results.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            policy("hidden", results)
        };
        fixture.apply_policy(&ns, "hidden", hidden(json!({}))).await;
        wait_secrets_missing(&fixture, &ns, "hidden", true).await;
        // The sink detects the new rights.
        allow_secrets(&fixture.cluster).await.unwrap();
        wait_secrets_missing(&fixture, &ns, "hidden", false).await;

        assert_stored_in_secrets_only(&fixture, &ns, &receiver).await;
        let user = a_user_with_rights_to_secrets_reads_results(&fixture, &ns).await;
        a_newer_run_with_another_storage_type_keeps_the_older_result(&fixture, &ns, &user).await;
        a_restarted_sink_keeps_results_in_secrets_with_and_without_rights(&fixture, &ns).await;
        // The current policy applies to existing results.
        fixture.apply_policy(&ns, "hidden", hidden(json!({"ttlSeconds": 1}))).await;
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), &ns);
        wait_for(3 * PATIENCE, "all Secrets to be deleted", || async {
            let list = secrets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let names: Vec<String> = list.items.iter().map(ResourceExt::name_any).collect();
            if names.is_empty() { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .await
        .unwrap();
        assert!(
            fixture.config_maps(&ns).get_opt("plain-results").await.unwrap().is_some(),
            "requested by another policy"
        );
    });
}

/// Compares with a ConfigMap of the same content.
async fn assert_stored_in_secrets_only(fixture: &Fixture, ns: &str, receiver: &Receiver) {
    fixture.create(ns, &job_with_secrets("secret-result", "hidden")).await.unwrap();
    fixture.create(ns, &job_with_secrets("plain", "open")).await.unwrap();
    fixture.create(ns, &large("large", "hidden")).await.unwrap();
    fixture.create(ns, &large("large-plain", "open")).await.unwrap();
    let notes =
        [wait_event_note(fixture, ns, "secret-result").await, wait_event_note(fixture, ns, "plain").await];
    wait_event_note(fixture, ns, "large").await;
    wait_event_note(fixture, ns, "large-plain").await;
    assert!(notes[0].contains("exit code 3") && !notes[0].contains(TERMINATION_MESSAGE), "{}", notes[0]);
    assert!(notes[0].ends_with(&format!("Result: Secret {ns}/secret-result-results")), "{}", notes[0]);
    assert!(notes[1].contains(TERMINATION_MESSAGE), "{}", notes[1]);

    let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
    let created = ListParams::default().labels("job-handler/created=true");
    let results = secrets.list(&created).await.unwrap().items;
    assert_eq!(
        results.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        ["large-results", "secret-result-results"]
    );
    assert!(results.iter().all(|secret| secret.type_.as_deref() == Some("job-handler.io/result")));
    for name in ["secret-result-results", "large-results"] {
        assert!(
            fixture.config_maps(ns).get_opt(name).await.unwrap().is_none(),
            "{name} is stored only as a Secret"
        );
    }
    let shards = |secret: &Secret| secret.labels().contains_key("job-handler/shard");
    let all = secrets.list(&ListParams::default()).await.unwrap().items;
    let maps =
        fixture.config_maps(ns).list(&ListParams::default().labels("job-handler/shard")).await.unwrap().items;
    assert_eq!(
        (all.iter().filter(|secret| shards(secret)).count(), maps.len()),
        (2, 2),
        "as many shards as a ConfigMap has"
    );

    // The same keys and values as in a ConfigMap, except for names and times.
    let secret = secrets.get("secret-result-results").await.unwrap().data.unwrap();
    let map = fixture.wait_result(ns, "plain").await.data.unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), map.keys().collect::<Vec<_>>());
    let text = |key: &str| String::from_utf8(secret[key].0.clone()).unwrap();
    assert_eq!((text("result"), text("status")), (map["result"].clone(), map["status"].clone()));
    let body = |logs: &str| logs.split_once('\n').unwrap().1.to_owned();
    assert_eq!(body(&text("logs")), body(&map["logs"]));
    assert!(text("logs").contains(LOG_TEXT));

    let events = ["io.job-handler.job.started", "io.job-handler.job.failed"];
    receiver.wait(fixture, "secret-result", &events).await;
    let all = receiver.events();
    let of = |event: &&Value| event["subject"] == format!("{ns}/secret-result") && event["type"] == events[1];
    let failed = all.iter().find(of).unwrap();
    assert_eq!(
        (&failed["data"]["result"]["kind"], &failed["data"]["complete"]),
        (&json!("Secret"), &json!(true))
    );
    assert!(!failed.to_string().contains(TERMINATION_MESSAGE), "{failed}");
}

fn rules(resources: Value) -> Value {
    json!([{"apiGroups": [""], "resources": resources, "verbs": ["get", "list"]}])
}

async fn a_user_with_rights_to_secrets_reads_results(fixture: &Fixture, ns: &str) -> PluginUser {
    let user = PluginUser::new(fixture, ns, rules(json!(["configmaps"]))).await;
    let output = user.kubectl(&["job-results", "list", "-o", "name", "--sort-by", "name"]).await;
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configmap/large-plain-results\nconfigmap/plain-results\n"
    );
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(errors.matches("results in Secrets are not listed").count(), 1, "{errors}");
    let error = user.fails(&["job-results", "logs", "secret-result"]).await;
    assert!(error.contains("results in Secrets could not be read"), "{error}");

    // The same user gets more rights.
    let role = json!({"rules": rules(json!(["configmaps", "secrets"]))}).to_string();
    fixture
        .cluster
        .kubectl(&["patch", "role", "plugin-user", "-n", ns, "--type=merge", "-p", &role])
        .await
        .unwrap();
    fixture
        .wait("the rights to be in force", || async {
            let can_list = user.kubectl(&["auth", "can-i", "list", "secrets"]).await;
            if can_list.status.success() { Ok(()) } else { Err("not yet") }
        })
        .await;
    let listed = user.ok(&["job-results", "list", "-o", "name", "--sort-by", "name"]).await;
    let names = ["configmap/large-plain", "secret/large", "configmap/plain", "secret/secret-result"]
        .map(|n| format!("{n}-results"));
    let mut found: Vec<&str> = listed.lines().collect();
    found.sort_unstable_by_key(|name| name.split_once('/').unwrap().1);
    assert_eq!(found, names);
    let shown = user.ok(&["job-results", "show", "secret-result"]).await;
    assert!(
        shown.contains(TERMINATION_MESSAGE) && shown.contains(&format!("Secret {ns}/secret-result-results")),
        "{shown}"
    );
    let read =
        async |job: &str| user.kubectl(&["job-results", "logs", job, "--raw", "-c", "main"]).await.stdout;
    assert_eq!(read("secret-result").await, read("plain").await);
    let large = read("large").await;
    assert_eq!(large.len(), 12 << 20);
    assert!(large == read("large-plain").await, "the same log as in the shards of a ConfigMap");
    user
}

async fn a_newer_run_with_another_storage_type_keeps_the_older_result(
    fixture: &Fixture,
    ns: &str,
    user: &PluginUser,
) {
    let jobs = fixture.jobs(ns);
    let before = jobs.get("secret-result").await.unwrap();
    jobs.delete("secret-result", &DeleteParams::background()).await.unwrap();
    fixture.wait_job_deleted(ns, "secret-result").await;
    fixture.create(ns, &job_with_secrets("secret-result", "open")).await.unwrap();
    let newer = fixture.wait_result(ns, "secret-result").await;
    assert!(newer.data.unwrap()["logs"].contains(LOG_TEXT), "the policy of this Job stores ConfigMaps");
    let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
    let renamed = format!("secret-result-results-{}", &before.uid().unwrap()[..8]);
    let moved = secrets.get(&renamed).await.unwrap();
    assert_eq!(moved.labels()["job-handler/job-uid"], before.uid().unwrap());
    assert!(
        secrets.get_opt("secret-result-results").await.unwrap().is_none(),
        "the name belongs to the newer run"
    );

    // A newer run in a Secret keeps the older result in a ConfigMap.
    jobs.delete("secret-result", &DeleteParams::background()).await.unwrap();
    fixture.wait_job_deleted(ns, "secret-result").await;
    fixture.create(ns, &job_with_secrets("secret-result", "hidden")).await.unwrap();
    fixture
        .wait("the third result", || async {
            secrets.get("secret-result-results").await.map(drop).map_err(|e| e.to_string())
        })
        .await;
    let maps: Vec<String> = fixture
        .config_maps(ns)
        .list(&ListParams::default().labels("job-name=secret-result"))
        .await
        .unwrap()
        .items
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(
        maps,
        [format!("secret-result-results-{}", &newer.metadata.labels.unwrap()["job-handler/job-uid"][..8])]
    );

    // And one in a Secret: the older one makes room for the newer one of its name.
    let third = jobs.get("secret-result").await.unwrap().uid().unwrap();
    jobs.delete("secret-result", &DeleteParams::background()).await.unwrap();
    fixture.wait_job_deleted(ns, "secret-result").await;
    let fourth = fixture.create(ns, &job_with_secrets("secret-result", "hidden")).await.unwrap();
    for (name, uid) in [
        ("secret-result-results".to_owned(), fourth.uid().unwrap()),
        (format!("secret-result-results-{}", &third[..8]), third.clone()),
    ] {
        fixture
            .wait(&format!("the result of {uid} in {name}"), || async {
                let secret = secrets.get(&name).await.map_err(|e| e.to_string())?;
                let of = &secret.labels()["job-handler/job-uid"];
                if *of == uid { Ok(()) } else { Err(format!("it is of {of}")) }
            })
            .await;
    }

    // A user who may not read Secrets is warned that the shown result may not be the newest.
    let role = json!({"rules": rules(json!(["configmaps"]))}).to_string();
    fixture
        .cluster
        .kubectl(&["patch", "role", "plugin-user", "-n", ns, "--type=merge", "-p", &role])
        .await
        .unwrap();
    fixture
        .wait("the right to be removed", || async {
            let can_list = user.kubectl(&["auth", "can-i", "list", "secrets"]).await;
            if can_list.status.success() { Err("not yet") } else { Ok(()) }
        })
        .await;
    let output = user.kubectl(&["job-results", "logs", "secret-result", "-c", "main"]).await;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success()
            && errors.contains("a newer run of Job secret-result may have its result in a Secret"),
        "{errors}"
    );
}

async fn a_restarted_sink_keeps_results_in_secrets_with_and_without_rights(fixture: &Fixture, ns: &str) {
    wait_event_note(fixture, ns, "secret-result").await;
    fixture
        .wait("the annotation", || async {
            let job = fixture.jobs(ns).get("secret-result").await.map_err(|e| e.to_string())?;
            if annotation(&job, "job-handler/results").is_empty() {
                Err("not annotated".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
    let version = async || {
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
        let secret = secrets.get("secret-result-results").await.unwrap();
        (secret.uid(), fixture.config_maps(ns).get_opt("secret-result-results").await.unwrap().is_none())
    };
    let before = version().await;
    forbid_secrets(&fixture.cluster).await.unwrap();
    wait_secrets_missing(fixture, ns, "hidden", true).await;
    for rights in [false, true] {
        if rights {
            allow_secrets(&fixture.cluster).await.unwrap();
        }
        fixture.pair.sink().restart().unwrap();
        fixture.pair.sink().wait_ready(PATIENCE).await.unwrap();
        wait_secrets_missing(fixture, ns, "hidden", !rights).await;
        // The result of a later Job is stored, so the sink has reconciled the earlier one as well.
        let later = format!("later-{rights}");
        fixture.create(ns, &job(&later, &[("app", "open")], &[("run", "200ms")])).await.unwrap();
        wait_event_note(fixture, ns, &later).await;
        assert_eq!(version().await, before, "with the rights: {rights}");
    }
}
