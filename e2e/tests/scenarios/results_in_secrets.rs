//! Results in Secrets: with the opt-in rights they are stored only there, and read, announced and deleted like those in ConfigMaps; without the rights no output of containers is published.

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
    kubectl_plugin::Person,
};

/// What containers write: into their log, and as their last message.
const WRITTEN: &str = "password=hunter2";
const LAST_WORDS: &str = "token=abc123";

/// A Job that fails, and says what it should not.
fn telling(name: &str, app: &str) -> Value {
    let log = format!("starting\n{WRITTEN}\n");
    let play =
        [("run", "200ms"), ("exit-code", "3"), ("log", log.as_str()), ("termination-message", LAST_WORDS)];
    let mut job = job(name, &[("app", app)], &play);
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

/// Waits until condition FullyEnforced has, or has not, something to say of Secrets.
async fn secrets_missing(fixture: &Fixture, ns: &str, policy: &str, missing: bool) -> String {
    fixture
        .wait(&format!("the policy to say that Secrets cannot be had: {missing}"), || async {
            let status = fixture.policies(ns).get(policy).await.map_err(|e| e.to_string())?.status;
            let conditions = status.unwrap_or_default().conditions;
            let told = conditions.into_iter().find(|c| c.type_ == "FullyEnforced").ok_or("no condition")?;
            if (told.reason == "NoSecrets") == missing { Ok(told.message) } else { Err(format!("{told:?}")) }
        })
        .await
}

async fn told(fixture: &Fixture, ns: &str, job: &str) -> String {
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
        let why = secrets_missing(fixture, &ns, "hidden", true).await;
        assert!(why.contains("no right to") && why.contains("apply manifests/overlays/secrets"), "{why}");

        fixture.create(&ns, &telling("build", "hidden")).await.unwrap();
        let note = told(fixture, &ns, "build").await;
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
            assert!(!all.contains(WRITTEN) && !all.contains(LAST_WORDS), "{resources}: {all}");
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
        secrets_missing(&fixture, &ns, "hidden", true).await;
        // The sink notices the new rights by itself.
        allow_secrets(&fixture.cluster).await.unwrap();
        secrets_missing(&fixture, &ns, "hidden", false).await;

        in_secrets_alone(&fixture, &ns, &receiver).await;
        let person = who_may_read_secrets_reads_them(&fixture, &ns).await;
        another_run_in_another_kind_hides_nothing(&fixture, &ns, &person).await;
        what_is_in_secrets_is_known_to_the_next_sink_and_left_where_it_cannot_be_read(&fixture, &ns).await;
        // What the policy says now is what counts.
        fixture.apply_policy(&ns, "hidden", hidden(json!({"ttlSeconds": 1}))).await;
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), &ns);
        wait_for(3 * PATIENCE, "no Secret to be left", || async {
            let left = secrets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let left: Vec<String> = left.items.iter().map(ResourceExt::name_any).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await
        .unwrap();
        assert!(
            fixture.config_maps(&ns).get_opt("plain-results").await.unwrap().is_some(),
            "asked for by another"
        );
    });
}

/// Compares with a ConfigMap of the same content.
async fn in_secrets_alone(fixture: &Fixture, ns: &str, receiver: &Receiver) {
    fixture.create(ns, &telling("quiet", "hidden")).await.unwrap();
    fixture.create(ns, &telling("plain", "open")).await.unwrap();
    fixture.create(ns, &large("large", "hidden")).await.unwrap();
    fixture.create(ns, &large("large-plain", "open")).await.unwrap();
    let notes = [told(fixture, ns, "quiet").await, told(fixture, ns, "plain").await];
    told(fixture, ns, "large").await;
    told(fixture, ns, "large-plain").await;
    assert!(notes[0].contains("exit code 3") && !notes[0].contains(LAST_WORDS), "{}", notes[0]);
    assert!(notes[0].ends_with(&format!("Result: Secret {ns}/quiet-results")), "{}", notes[0]);
    assert!(notes[1].contains(LAST_WORDS), "{}", notes[1]);

    let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
    let made = ListParams::default().labels("job-handler/created=true");
    let results = secrets.list(&made).await.unwrap().items;
    assert_eq!(
        results.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        ["large-results", "quiet-results"]
    );
    assert!(results.iter().all(|secret| secret.type_.as_deref() == Some("job-handler.io/result")));
    for name in ["quiet-results", "large-results"] {
        assert!(fixture.config_maps(ns).get_opt(name).await.unwrap().is_none(), "{name} is a Secret alone");
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

    // The same keys and values as the other, except for names and times.
    let secret = secrets.get("quiet-results").await.unwrap().data.unwrap();
    let map = fixture.wait_result(ns, "plain").await.data.unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), map.keys().collect::<Vec<_>>());
    let text = |key: &str| String::from_utf8(secret[key].0.clone()).unwrap();
    assert_eq!((text("result"), text("status")), (map["result"].clone(), map["status"].clone()));
    let body = |logs: &str| logs.split_once('\n').unwrap().1.to_owned();
    assert_eq!(body(&text("logs")), body(&map["logs"]));
    assert!(text("logs").contains(WRITTEN));

    let events = ["io.job-handler.job.started", "io.job-handler.job.failed"];
    receiver.wait(fixture, "quiet", &events).await;
    let all = receiver.events();
    let of = |event: &&Value| event["subject"] == format!("{ns}/quiet") && event["type"] == events[1];
    let failed = all.iter().find(of).unwrap();
    assert_eq!(
        (&failed["data"]["result"]["kind"], &failed["data"]["complete"]),
        (&json!("Secret"), &json!(true))
    );
    assert!(!failed.to_string().contains(LAST_WORDS), "{failed}");
}

fn rules(resources: Value) -> Value {
    json!([{"apiGroups": [""], "resources": resources, "verbs": ["get", "list"]}])
}

async fn who_may_read_secrets_reads_them(fixture: &Fixture, ns: &str) -> Person {
    let person = Person::new(fixture, ns, rules(json!(["configmaps"]))).await;
    let output = person.kubectl(&["job-results", "list", "-o", "name", "--sort-by", "name"]).await;
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configmap/large-plain-results\nconfigmap/plain-results\n"
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("results in Secrets are not listed").count(), 1, "{said}");
    let error = person.fails(&["job-results", "logs", "quiet"]).await;
    assert!(error.contains("results in Secrets could not be read"), "{error}");

    // More rights, the same person.
    let role = json!({"rules": rules(json!(["configmaps", "secrets"]))}).to_string();
    fixture
        .cluster
        .kubectl(&["patch", "role", "person", "-n", ns, "--type=merge", "-p", &role])
        .await
        .unwrap();
    fixture
        .wait("the rights to be there", || async {
            let may = person.kubectl(&["auth", "can-i", "list", "secrets"]).await;
            if may.status.success() { Ok(()) } else { Err("not yet") }
        })
        .await;
    let listed = person.ok(&["job-results", "list", "-o", "name", "--sort-by", "name"]).await;
    let names = ["configmap/large-plain", "secret/large", "configmap/plain", "secret/quiet"]
        .map(|n| format!("{n}-results"));
    let mut found: Vec<&str> = listed.lines().collect();
    found.sort_unstable_by_key(|name| name.split_once('/').unwrap().1);
    assert_eq!(found, names);
    let shown = person.ok(&["job-results", "show", "quiet"]).await;
    assert!(shown.contains(LAST_WORDS) && shown.contains(&format!("Secret {ns}/quiet-results")), "{shown}");
    let read =
        async |job: &str| person.kubectl(&["job-results", "logs", job, "--raw", "-c", "main"]).await.stdout;
    assert_eq!(read("quiet").await, read("plain").await);
    let large = read("large").await;
    assert_eq!(large.len(), 12 << 20);
    assert!(large == read("large-plain").await, "what a ConfigMap's shards hold");
    person
}

async fn another_run_in_another_kind_hides_nothing(fixture: &Fixture, ns: &str, person: &Person) {
    let jobs = fixture.jobs(ns);
    let before = jobs.get("quiet").await.unwrap();
    jobs.delete("quiet", &DeleteParams::background()).await.unwrap();
    fixture.wait_job_deleted(ns, "quiet").await;
    fixture.create(ns, &telling("quiet", "open")).await.unwrap();
    let newer = fixture.wait_result(ns, "quiet").await;
    assert!(newer.data.unwrap()["logs"].contains(WRITTEN), "the policy of this one says so");
    let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
    let aside = format!("quiet-results-{}", &before.uid().unwrap()[..8]);
    let moved = secrets.get(&aside).await.unwrap();
    assert_eq!(moved.labels()["job-handler/job-uid"], before.uid().unwrap());
    assert!(secrets.get_opt("quiet-results").await.unwrap().is_none(), "the name belongs to the newer run");

    // And the other way round.
    jobs.delete("quiet", &DeleteParams::background()).await.unwrap();
    fixture.wait_job_deleted(ns, "quiet").await;
    fixture.create(ns, &telling("quiet", "hidden")).await.unwrap();
    fixture
        .wait("the third result", || async {
            secrets.get("quiet-results").await.map(drop).map_err(|e| e.to_string())
        })
        .await;
    let maps: Vec<String> = fixture
        .config_maps(ns)
        .list(&ListParams::default().labels("job-name=quiet"))
        .await
        .unwrap()
        .items
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    assert_eq!(
        maps,
        [format!("quiet-results-{}", &newer.metadata.labels.unwrap()["job-handler/job-uid"][..8])]
    );

    // A user who may not read Secrets is warned that the shown result may not be the newest.
    let role = json!({"rules": rules(json!(["configmaps"]))}).to_string();
    fixture
        .cluster
        .kubectl(&["patch", "role", "person", "-n", ns, "--type=merge", "-p", &role])
        .await
        .unwrap();
    fixture
        .wait("the right to be gone", || async {
            let may = person.kubectl(&["auth", "can-i", "list", "secrets"]).await;
            if may.status.success() { Err("not yet") } else { Ok(()) }
        })
        .await;
    let output = person.kubectl(&["job-results", "logs", "quiet", "-c", "main"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("a newer run of Job quiet may have its result in a Secret"),
        "{said}"
    );
}

async fn what_is_in_secrets_is_known_to_the_next_sink_and_left_where_it_cannot_be_read(
    fixture: &Fixture,
    ns: &str,
) {
    told(fixture, ns, "quiet").await;
    fixture
        .wait("the mark", || async {
            let job = fixture.jobs(ns).get("quiet").await.map_err(|e| e.to_string())?;
            if annotation(&job, "job-handler/results").is_empty() {
                Err("no mark".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
    let version = async || {
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), ns);
        let secret = secrets.get("quiet-results").await.unwrap();
        (secret.uid(), fixture.config_maps(ns).get_opt("quiet-results").await.unwrap().is_none())
    };
    let before = version().await;
    forbid_secrets(&fixture.cluster).await.unwrap();
    secrets_missing(fixture, ns, "hidden", true).await;
    for rights in [false, true] {
        if rights {
            allow_secrets(&fixture.cluster).await.unwrap();
        }
        fixture.pair.sink().restart().unwrap();
        fixture.pair.sink().wait_ready(PATIENCE).await.unwrap();
        secrets_missing(fixture, ns, "hidden", !rights).await;
        // One that comes later has gone through everything meanwhile.
        let later = format!("later-{rights}");
        fixture.create(ns, &job(&later, &[("app", "open")], &[("run", "200ms")])).await.unwrap();
        told(fixture, ns, &later).await;
        assert_eq!(version().await, before, "with the rights: {rights}");
    }
}
