//! Memory does not follow what tenants write into their Jobs: webhook and sink start, refuse and rotate their certificates
//! under the limits of the manifest, in a cluster full of Jobs of 10,000 labels.

use std::{ops::Range, time::Duration};

use futures::{StreamExt, stream};
use job_handler_e2e::{
    Cluster, ClusterOptions, Component, Pair, PairOptions, etcd_history::copy_job,
    harness::cgroup::MemoryLimit, pair::review_path, wait_for,
};
use job_handler_shared::{keys, text::human_bytes};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    super::fixtures::{Fixture, exclusive_scenario_with_own_cluster, job, refusal},
    strangers::stranger,
};

/// The limits of the manifest; `manifests/base/deployment.yaml`.
pub(super) const WEBHOOK_LIMIT: u64 = 256 << 20;
const SINK_LIMIT: u64 = 512 << 20;
/// What neither may reach: less than the labels of all Jobs would take if a program kept them. Beyond
/// [`MAX_WATCH_CACHED`] Jobs, the limits of the manifest themselves are less.
const TRIMMED_PEAK: u64 = 96 << 20;
const LABELS: usize = 10_000;
/// The label keys that the JobPolicies of a namespace may name. Of these, a limit selects Jobs by the first ones.
const NAMED: usize = 64;
const SELECTED: usize = 32;
/// Jobs with that many labels. Each takes about 2 MiB in the apiserver's watch cache.
const LABELLED_JOBS: (&str, usize) = ("E2E_LABELLED_JOBS", 120);
/// Beyond this number, the apiserver keeps no watch cache of Jobs: it would not have room for itself.
const MAX_WATCH_CACHED: usize = 1_000;
/// Jobs of 1.2 MB: a usual page of them would be larger than the limit.
const LARGE_JOBS: usize = 120;
const LARGE: usize = 1_200_000;
/// Jobs of that size that hold slots: a refusal reads each of them, as 7 MB of JSON.
const LARGE_HOLDERS: usize = 8;
const WRITERS: usize = 8;
/// Labels of a Job that the apiserver has reviewed, and then cannot store.
const HUGE: usize = 200_000;

#[test]
fn jobs_of_ten_thousand_labels_kill_neither_program() {
    exclusive_scenario_with_own_cluster(async || {
        let labelled = std::env::var(LABELLED_JOBS.0).map_or(LABELLED_JOBS.1, |text| text.parse().unwrap());
        let no_watch_cache =
            (labelled > MAX_WATCH_CACHED).then(|| "--watch-cache-sizes=jobs.batch#0".to_owned());
        let options = ClusterOptions {
            apiserver_arguments: no_watch_cache.into_iter().collect(),
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(options).await.unwrap();
        let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
        let fixture = &Fixture { cluster, pair };
        // To list so many takes minutes.
        let patience = Duration::from_secs(60 + u64::try_from(labelled).unwrap() / 10);
        let (webhook, sink) = (fixture.pair.webhook(0), fixture.pair.sink());
        let hostile = fixture.cluster.namespace("hostile").await.unwrap();
        // Of their own: reading them for a decision in the other namespace would take longer than a review may.
        let large = fixture.cluster.namespace("large").await.unwrap();
        let held = fixture.cluster.namespace("held").await.unwrap();
        let honest = fixture.cluster.namespace("honest").await.unwrap();
        let limit = json!({"jobSelector": {"matchLabels": {"app": "build"}},
            "limits": [{"name": "few", "maxActiveJobs": 1}], "results": {}});
        fixture.apply_policy(&honest, "few", limit).await;
        // It reads and writes every suspended Job again, which takes most of the time here.
        fixture.cluster.component(Component::ControllerManager).unwrap().stop().unwrap();
        let first = fixture.create(&hostile, &labelled_job()).await.unwrap();
        let original = (first.name_any(), first.uid().unwrap());
        // They would double the size of each in etcd.
        let no_managed_fields = Patch::Merge(json!({"metadata": {"managedFields": [{}]}}));
        fixture.jobs(&hostile).patch(&original.0, &PatchParams::default(), &no_managed_fields).await.unwrap();
        let copies = (1..labelled).map(|n| (format!("labels-{n:05}"), format!("{n:036}")));
        copy_job(&fixture.cluster, &hostile, (&original.0, &original.1), copies).await.unwrap();
        create_all(fixture, &large, (0..LARGE_JOBS).map(|n| large_job(n, "x", true))).await;
        create_all(fixture, &held, (0..LARGE_HOLDERS).map(|n| large_job(n, "<", false))).await;

        // Start.
        let limits = [(webhook, WEBHOOK_LIMIT), (sink, SINK_LIMIT)].map(|(member, bytes)| {
            member.restart().unwrap();
            MemoryLimit::apply(&member.name(), member.process().id(), bytes).unwrap()
        });
        for member in [webhook, sink] {
            member.wait_ready(patience + Duration::from_secs(240)).await.unwrap();
        }
        let check = |when: &str| {
            for (member, limit) in [webhook, sink].into_iter().zip(&limits) {
                member.process().ensure_running().unwrap();
                let (peak, name) = (limit.check().unwrap(), member.name());
                println!(
                    "{name} with {labelled} Jobs of {LABELS} labels, {when}: peak {}",
                    human_bytes(peak)
                );
                let is_trimmed = peak < TRIMMED_PEAK || labelled > MAX_WATCH_CACHED;
                assert!(is_trimmed, "{name}, {when}: {peak} bytes");
            }
        };
        check("after the start");

        // Refuse: among Jobs of which nothing was kept, and by labels that all of them have and no policy named before.
        let selected: Vec<String> = (0..SELECTED).map(label).collect();
        let selected: Vec<(&str, &str)> = selected.iter().map(|key| (key.as_str(), "")).collect();
        for (ns, policy, labels) in
            [(&honest, None, vec![("app", "build")]), (&hostile, Some(hostile_limit()), selected)]
        {
            if let Some(policy) = policy {
                fixture.apply_policy(ns, "by-label", policy).await;
            }
            let create = |name: &'static str| {
                let job = job(name, &labels, &[("run", "600s")]);
                async move { fixture.create(ns, &job).await }
            };
            wait_for(patience, "the first Job to be admitted", || create("first")).await.unwrap();
            let refused = || async {
                match refusal(create("second").await) {
                    (403, message) if message.contains("1 active jobs, max allowed: 1") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            };
            wait_for(patience, "the second Job to be refused", refused).await.unwrap();
        }

        check("after refusals by their labels");

        fixture.apply_policy(&held, "few", json!({"limits": [{"name": "few", "maxActiveJobs": 4}]})).await;
        let callers = (0..WRITERS).map(|n| {
            let job = job(&format!("one-more-{n}"), &[], &[]);
            let held = &held;
            async move {
                fixture
                    .wait("a refusal because of large Jobs", || async {
                        match refusal(fixture.create(held, &job).await) {
                            (403, message) if message.contains("8 active jobs, max allowed: 4") => Ok(()),
                            other => Err(format!("{other:?}")),
                        }
                    })
                    .await;
            }
        });
        futures::future::join_all(callers).await;
        check("after refusals because of large Jobs");

        // Reviews of Jobs that etcd does not take, several at a time. They come from here: the apiserver takes half a minute for
        // one of them.
        let caller = stranger(fixture).await;
        for endpoint in [keys::MUTATE_PATH, keys::VALIDATE_PATH] {
            stream::iter(0..2 * WRITERS)
                .for_each_concurrent(WRITERS, |n| {
                    let (caller, review) = (&caller, huge_review(&hostile, n));
                    async move {
                        fixture
                            .wait("an answer to a huge review", || async {
                                let path = review_path(fixture.client(), endpoint).await.unwrap();
                                let answer = caller.post(&path, review.clone()).await;
                                // Several at once are more than the budget of bodies (429), and a busy machine may take longer
                                // than the webhook waits for one.
                                match answer.map_err(|error| error.to_string())?.status {
                                    200 => Ok(()),
                                    status => Err(status.to_string()),
                                }
                            })
                            .await;
                    }
                })
                .await;
        }

        // Rotate.
        let before = ca_bundle(fixture).await;
        let secrets: Api<Secret> = Api::namespaced(fixture.client(), keys::NAMESPACE);
        secrets.delete(keys::CA_SECRET, &DeleteParams::default()).await.unwrap();
        fixture
            .wait("the new CA to be published", || async {
                if ca_bundle(fixture).await == before { Err("the old one still is") } else { Ok(()) }
            })
            .await;
        fixture
            .wait("reviews with the new certificate", || async {
                match refusal(fixture.create(&honest, &job("third", &[("app", "build")], &[])).await) {
                    (403, _) => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;

        check("after the rotation");

        // The Jobs change, and go.
        fixture
            .jobs(&hostile)
            .delete_collection(&DeleteParams::background(), &Default::default())
            .await
            .unwrap();
        check("in the end");
        for member in [webhook, sink] {
            member.kill().unwrap();
        }
    });
}

fn label(n: usize) -> String {
    format!("l{n:05}")
}

/// A limit that counts by as many labels of the hostile Jobs as a policy may name. They are suspended and take no slot.
fn hostile_limit() -> Value {
    let pairs = |keys: Range<usize>, value: &str| -> serde_json::Map<String, Value> {
        keys.map(|n| (label(n), value.into())).collect()
    };
    let expressions: Vec<Value> =
        (SELECTED..48).map(|n| json!({"key": label(n), "operator": "NotIn", "values": ["x"]})).collect();
    json!({
        "jobSelector": {"matchLabels": pairs(0..SELECTED, ""), "matchExpressions": expressions},
        "group": {"type": "Labels", "labelKeys": (48..56).map(label).collect::<Vec<_>>()},
        "stamp": {"labels": pairs(56..NAMED, "x")},
        "limits": [{"name": "few", "maxActiveJobs": 1}],
    })
}

fn labelled_job() -> Value {
    let mut job = job("labels-00000", &[], &[]);
    job["spec"]["suspend"] = json!(true);
    for n in 0..LABELS {
        job["metadata"]["labels"][label(n)] = "".into();
    }
    job
}

fn huge_review(namespace: &str, n: usize) -> String {
    let name = format!("huge-{n}");
    let mut job = job(&name, &[], &[]);
    job["metadata"]["namespace"] = namespace.into();
    for n in 0..HUGE {
        job["metadata"]["labels"][format!("l{n:06}")] = "".into();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": name, "operation": "CREATE", "namespace": namespace, "name": name, "dryRun": false,
        "kind": {"group": "batch", "version": "v1", "kind": "Job"}, "object": job}})
    .to_string()
}

fn large_job(n: usize, filler: &str, is_suspended: bool) -> Value {
    let mut job = job(&format!("large-{n:05}"), &[], &[]);
    job["spec"]["suspend"] = json!(is_suspended);
    let filler = json!([{"name": "FILLER", "value": filler.repeat(LARGE)}]);
    job["spec"]["template"]["spec"]["containers"][0]["env"] = filler;
    job
}

async fn create_all(fixture: &Fixture, namespace: &str, jobs: impl Iterator<Item = Value>) {
    stream::iter(jobs)
        .for_each_concurrent(WRITERS, |job| async move {
            fixture.create(namespace, &job).await.unwrap();
        })
        .await;
}

async fn ca_bundle(fixture: &Fixture) -> Vec<u8> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(fixture.client());
    let found = configurations.get(keys::MUTATING_CONFIGURATION).await.unwrap();
    let hook = found.webhooks.into_iter().flatten().next().unwrap();
    hook.client_config.ca_bundle.unwrap_or_default().0
}
