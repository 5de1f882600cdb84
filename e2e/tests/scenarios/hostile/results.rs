//! Forged and edited results: with the admission policy they are denied, without it they harm nobody but their author.

use job_handler_e2e::PairOptions;
use job_handler_shared::{
    keys::{self, RESULTS_ADMISSION_POLICY},
    result::metadata,
};
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::tenant::{Tenant, assert_allowed, assert_denied};
use crate::fixtures::{Fixture, exclusive_scenario_with_options, job, scenario};

/// What the admission policy says.
const DENIED: &str = "only job-handler";

fn short_job(name: &str) -> Value {
    job(name, &[], &[("run", "200ms"), ("log", "as it was\n")])
}

fn config_map(name: &str, labels: &Value, annotations: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
        "metadata": {"name": name, "labels": labels, "annotations": annotations}})
}

async fn wait_announced(fixture: &Fixture, ns: &str, job: &str) {
    fixture
        .wait(&format!("the Event of {job}"), || async {
            fixture.events(ns, "JobProcessing", job).await.pop().map(drop).ok_or("none")
        })
        .await;
}

#[test]
fn only_the_sink_makes_and_changes_results() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("only-the-sink").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        for name in ["build", "collected"] {
            fixture.create(&ns, &short_job(name)).await.unwrap();
            wait_announced(fixture, &ns, name).await;
        }
        let tenant = Tenant::new(fixture, &ns).await;

        for label in metadata::RESERVED_LABELS {
            let forged = config_map("forged", &json!({label: "true"}), &json!({}));
            assert_denied(label, &tenant.create(&forged).await, DENIED);
            let mut secret = forged;
            (secret["kind"], secret["data"]) = (json!("Secret"), json!({}));
            assert_denied(label, &tenant.create(&secret).await, DENIED);
        }
        for annotation in metadata::RESERVED_ANNOTATIONS {
            let mut forged = config_map("forged", &json!({}), &json!({annotation: "1"}));
            assert_denied(annotation, &tenant.create(&forged).await, DENIED);
            (forged["kind"], forged["data"]) = (json!("Secret"), json!({}));
            assert_denied(annotation, &tenant.create(&forged).await, DENIED);
        }
        assert_allowed(
            "an object of one's own",
            &tenant.create(&config_map("own", &json!({}), &json!({}))).await,
        );
        let adopt = json!({"metadata": {"labels": {keys::CREATED: "true"}}});
        assert_denied("to make it a result", &tenant.patch("configmap", "own", &adopt).await, DENIED);
        let mut secret = config_map("own", &json!({}), &json!({}));
        (secret["kind"], secret["data"]) = (json!("Secret"), json!({}));
        assert_allowed("a Secret of one's own", &tenant.create(&secret).await);
        assert_denied("to make it a result", &tenant.patch("secret", "own", &adopt).await, DENIED);
        let edit = tenant.patch("configmap", "own", &json!({"data": {"a": "c"}})).await;
        assert_allowed("to edit it", &edit);

        for change in [
            json!({"data": {"logs": "as I say\n"}}),
            json!({"data": {"mine": "x"}}),
            json!({"binaryData": {"mine": "eA=="}}),
            json!({"immutable": true}),
            json!({"metadata": {"labels": {keys::CREATED: null}}}),
            json!({"metadata": {"labels": {metadata::PENDING: "pending"}}}),
            json!({"metadata": {"annotations": {metadata::RETENTION: "{}"}}}),
            json!({"metadata": {"annotations": {metadata::SEAL: null}}}),
        ] {
            let answer = tenant.patch("configmap", "build-results", &change).await;
            assert_denied(&change.to_string(), &answer, DENIED);
        }
        let mark = json!({"metadata": {"labels": {"team": "x"}, "annotations": {"note": "look at this"}}});
        assert_allowed("to mark it", &tenant.patch("configmap", "build-results", &mark).await);
        let marked = fixture.config_maps(&ns).get("build-results").await.unwrap();
        assert_eq!(marked.labels()["team"], "x");
        assert!(marked.data.unwrap()["logs"].contains("as it was"));
        assert_allowed("to delete it", &tenant.kubectl(&["delete", "configmap", "build-results"], "").await);

        // The garbage collector is not the sink either.
        fixture.jobs(&ns).delete("collected", &Default::default()).await.unwrap();
        let owner = fixture.config_maps(&ns).get("own").await.unwrap().uid().unwrap();
        let owned = json!({"metadata": {"ownerReferences":
            [{"apiVersion": "v1", "kind": "ConfigMap", "name": "own", "uid": owner}]}});
        let answer = tenant.patch("configmap", "collected-results", &owned).await;
        assert_allowed("to own it", &answer);
        assert_allowed("to delete the owner", &tenant.kubectl(&["delete", "configmap", "own"], "").await);
        let api = fixture.config_maps(&ns);
        fixture
            .wait("the garbage collector to delete the result", || async {
                match api.get_opt("collected-results").await {
                    Ok(None) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
    });
}

/// What an annotation says is stored was stored by the sink, and clients that know nothing of it work as ever.
#[test]
fn only_the_sink_marks_jobs() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("only-marks").await.unwrap();
        fixture.apply_policy(&ns, "p", json!({"results": {}})).await;
        let tenant = Tenant::new(fixture, &ns).await;
        let mut manifest = short_job("build");
        (manifest["apiVersion"], manifest["kind"]) = (json!("batch/v1"), json!("Job"));
        let text = manifest.to_string();
        let apply = async |flags: &[&str], input: &str| {
            let arguments: Vec<&str> = ["apply", "-f", "-"].iter().chain(flags).copied().collect();
            tenant.kubectl(&arguments, input).await
        };
        assert_allowed("to apply a Job", &apply(&[], &text).await);
        wait_announced(fixture, &ns, "build").await;
        let marks = async || {
            let job = fixture.jobs(&ns).get("build").await.unwrap();
            job.annotations().get(keys::RESULTS).cloned()
        };
        assert_eq!(marks().await.as_deref(), Some("build-results"));

        for mark in keys::MARKS {
            let forge = json!({"metadata": {"annotations": {mark: "forged"}}});
            assert_denied(mark, &tenant.patch("job", "build", &forge).await, DENIED);
        }
        let flag = format!("{}=other-results", keys::RESULTS);
        let answer = tenant.kubectl(&["annotate", "--overwrite", "job", "build", &flag], "").await;
        assert_denied("kubectl annotate", &answer, DENIED);
        // The role `edit` has no right to write a status; others may give it.
        let change = json!({"metadata": {"annotations": {keys::RESULTS: "forged"}}}).to_string();
        let status =
            ["patch", "job", "build", "-n", &ns, "--subresource=status", "--type=merge", "-p", &change];
        let answer = fixture.cluster.try_kubectl(&status, b"").await.unwrap();
        assert_denied("with the status", &answer, DENIED);

        // Clients that do not know the marks: they stay.
        assert_allowed("kubectl apply", &apply(&[], &text).await);
        let server_side = ["--server-side", "--force-conflicts", "--field-manager=gitops"];
        assert_allowed("server-side apply", &apply(&server_side, &text).await);
        let label = json!({"metadata": {"labels": {"team": "x"}}});
        assert_allowed("kubectl patch", &tenant.patch("job", "build", &label).await);
        assert_eq!(marks().await.as_deref(), Some("build-results"));
        // A full update with an old manifest removes them; the sink sets them again.
        let mut old = serde_json::to_value(fixture.jobs(&ns).get("build").await.unwrap()).unwrap();
        (old["apiVersion"], old["kind"]) = (json!("batch/v1"), json!("Job"));
        let annotations = old["metadata"]["annotations"].as_object_mut().unwrap();
        keys::MARKS.iter().for_each(|mark| _ = annotations.remove(*mark));
        let metadata = old["metadata"].as_object_mut().unwrap();
        metadata.remove("resourceVersion");
        let answer = tenant.kubectl(&["replace", "-f", "-"], &old.to_string()).await;
        assert_allowed("kubectl replace", &answer);
        fixture
            .wait("the marks", || async {
                if marks().await.is_some() { Ok(()) } else { Err("removed".to_owned()) }
            })
            .await;
        assert_eq!(result_names(fixture, &ns).await, ["build-results"]);
    });
}

/// Results that were there before the admission policy: all attacks that the sink itself has to contain.
#[test]
fn without_the_admission_policy_forged_results_harm_only_their_author() {
    // Room for what the victim stores, and not for what the tenant claims to.
    let arguments = vec!["--results-max-bytes=512Ki".to_owned()];
    let options = PairOptions { sink_arguments: arguments, ..PairOptions::default() };
    exclusive_scenario_with_options(options, async |fixture| {
        let victim = fixture.cluster.namespace("victim").await.unwrap();
        let evil = fixture.cluster.namespace("evil").await.unwrap();
        for ns in [&victim, &evil] {
            let cleanup = json!({"succeededPolicy": "AfterHarvest"});
            let selector = json!({"matchLabels": {"cleanup": "true"}});
            fixture.apply_policy(ns, "p", json!({"results": {}})).await;
            let spec = json!({"jobSelector": selector, "results": {}, "cleanup": cleanup});
            fixture.apply_policy(ns, "cleanup", spec).await;
        }
        for name in ["build-1", "build-2"] {
            fixture.create(&victim, &short_job(name)).await.unwrap();
            wait_announced(fixture, &victim, name).await;
        }
        let delete = ["delete", "validatingadmissionpolicybinding", RESULTS_ADMISSION_POLICY];
        fixture.cluster.kubectl(&delete).await.unwrap();
        let tenant = Tenant::new(fixture, &evil).await;
        fixture
            .wait("the apiserver to forget the policy", || async {
                let probe = config_map("probe", &json!({metadata::SHARD: "x"}), &json!({}));
                let answer = tenant.create(&probe).await;
                if answer.success { Ok(()) } else { Err(answer.stderr) }
            })
            .await;

        an_older_result_stays_in_its_namespace(fixture, &tenant, &victim, &evil).await;
        a_job_is_not_deleted_for_a_forged_result(fixture, &tenant, &victim, &evil).await;
        bytes_and_dates_evict_only_ones_own(fixture, &tenant, &victim, &evil).await;
        assert!(events_about_results(fixture, "kube-system").await.is_empty());
    });
}

/// The genuine result `build-1-results` as a template, for a Job with this name and uid, with another namespace inside.
async fn forge(fixture: &Fixture, victim: &str, job: &str, uid: &str, claimed_namespace: &str) -> Value {
    let genuine = fixture.config_maps(victim).get("build-1-results").await.unwrap();
    let old_uid = genuine.labels()[keys::JOB_UID].clone();
    let mut forged = serde_json::to_value(&genuine).unwrap();
    let (labels, annotations) =
        (forged["metadata"]["labels"].clone(), forged["metadata"]["annotations"].clone());
    forged["apiVersion"] = "v1".into();
    forged["kind"] = "ConfigMap".into();
    forged["metadata"] =
        json!({"name": format!("{job}-results"), "labels": labels, "annotations": annotations});
    forged["metadata"]["labels"][metadata::PENDING] = "pending".into();
    let text = forged.to_string().replace(&old_uid, uid);
    let mut forged: Value = serde_json::from_str(&text).unwrap();
    let mut manifest: Value = serde_json::from_str(forged["data"]["result.json"].as_str().unwrap()).unwrap();
    manifest["job"]["name"] = job.into();
    manifest["job"]["namespace"] = claimed_namespace.into();
    manifest["announcementsPending"] = json!(["JobProcessing"]);
    forged["data"]["result.json"] = manifest.to_string().into();
    forged["data"]["logs"] = "forged\n".into();
    forged
}

async fn result_names(fixture: &Fixture, ns: &str) -> Vec<String> {
    let params = ListParams::default().labels("job-handler/created=true");
    let all = fixture.config_maps(ns).list(&params).await.unwrap().items;
    all.iter().map(ResourceExt::name_any).collect()
}

async fn events_about_results(fixture: &Fixture, ns: &str) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(fixture.client(), ns);
    api.list(&ListParams::default().fields("reason=JobProcessing")).await.unwrap().items
}

/// A newer run of the same name moves the older result aside; where to must not follow from its content.
async fn an_older_result_stays_in_its_namespace(
    fixture: &Fixture,
    tenant: &Tenant<'_>,
    victim: &str,
    evil: &str,
) {
    let uid = "aaaaaaaa-0000-4000-8000-000000000000";
    let forged = forge(fixture, victim, "moved", uid, "kube-system").await;
    assert_allowed("to forge a result", &tenant.create(&forged).await);
    fixture.create(evil, &short_job("moved")).await.unwrap();
    wait_announced(fixture, evil, "moved").await;
    let mut names = result_names(fixture, evil).await;
    names.sort();
    assert_eq!(names, ["moved-results", "moved-results-aaaaaaaa"]);
    assert!(result_names(fixture, "kube-system").await.is_empty());
    for event in events_about_results(fixture, evil).await {
        let about = event.regarding.unwrap().uid.unwrap();
        assert_ne!(about, uid, "an Event was forged");
    }
}

async fn a_job_is_not_deleted_for_a_forged_result(
    fixture: &Fixture,
    tenant: &Tenant<'_>,
    victim: &str,
    evil: &str,
) {
    let running = job("running", &[("cleanup", "true")], &[("run", "5s"), ("log", "genuine\n")]);
    let uid = fixture.create(evil, &running).await.unwrap().uid().unwrap();
    let forged = forge(fixture, victim, "running", &uid, evil).await;
    assert_allowed("to forge a result", &tenant.create(&forged).await);
    // The other admission policy still stands.
    let marks = json!({keys::STATUS: "completed", keys::RESULTS: "running-results"});
    let answer = tenant.patch("job", "running", &json!({"metadata": {"annotations": marks}})).await;
    assert_denied("to say that it is the Job's", &answer, DENIED);
    fixture.wait_job_deleted(evil, "running").await;
    let own = fixture.config_maps(evil).get(&format!("running-results-{}", &uid[..8])).await.unwrap();
    assert!(own.data.unwrap()["logs"].contains("genuine"));
    let left: ConfigMap = fixture.config_maps(evil).get("running-results").await.unwrap();
    assert_eq!(left.data.unwrap()["logs"], "forged\n", "it is not the sink's");
}

async fn bytes_and_dates_evict_only_ones_own(
    fixture: &Fixture,
    tenant: &Tenant<'_>,
    victim: &str,
    evil: &str,
) {
    let before = result_names(fixture, victim).await;
    assert_eq!(before.len(), 2);
    let facts = json!({"created": "9000-01-01T00:00:00Z", "finished": "9000-01-01T00:00:00Z",
        "bytes": 9_000_000_000_000_000_000_u64, "shards": 0, "policies": []});
    for n in 1..=2 {
        let uid = format!("bbbbbbbb-0000-4000-8000-00000000000{n}");
        let mut forged = forge(fixture, victim, &format!("huge-{n}"), &uid, victim).await;
        forged["metadata"]["annotations"][metadata::RETENTION] = facts.to_string().into();
        forged["metadata"]["labels"].as_object_mut().unwrap().remove(keys::GROUP);
        assert_allowed("to forge a result", &tenant.create(&forged).await);
    }
    fixture
        .wait("the tenant's own results to be evicted", || async {
            let names = result_names(fixture, evil).await;
            if names.iter().any(|name| name.starts_with("huge")) { Err(format!("{names:?}")) } else { Ok(()) }
        })
        .await;
    assert_eq!(result_names(fixture, victim).await, before, "the victim lost a result");
    assert_eq!(events_about_results(fixture, victim).await.len(), 2);
}
