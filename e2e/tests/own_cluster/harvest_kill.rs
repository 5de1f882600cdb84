//! The sink is killed (SIGKILL) at 20 seeded random moments while 200 Jobs finish: exactly 200 results, 200 Events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions, wait_for};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::api::{batch::v1::Job, core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// `HARVEST_KILL_SEED` overrides it.
const SEED: u64 = 20_240_117;
const JOBS: usize = 200;
const KILLS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn every_job_has_one_result_and_one_event_although_the_sink_is_killed_at_random_moments() {
    let seed = std::env::var("HARVEST_KILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED);
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions::default()).await.unwrap();
    let ns = cluster.namespace("kills").await.unwrap();
    apply_policy(&cluster, &ns).await;

    // Ten Jobs before each kill, so that at every kill some finish, some are captured, stored, annotated or announced.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for kill in 0..KILLS {
        for n in 0..JOBS / KILLS {
            let name = format!("job-{}", kill * (JOBS / KILLS) + n);
            let run = format!("{}ms", random.random_range(100..2_500));
            let fails = random.random_bool(0.25);
            let log = format!("output of {name}\n");
            let annotations =
                [("run", run.as_str()), ("log", &log), ("exit-code", if fails { "1" } else { "0" })];
            let mut job = job_handler_e2e::cluster::jobs::job(&name, &annotations);
            job.spec.as_mut().unwrap().backoff_limit = Some(0);
            let job = cluster.create_job(&ns, &job).await.unwrap();
            names.insert(job.uid().unwrap(), name);
        }
        // A random moment for the kill, not a wait for a condition.
        tokio::time::sleep(Duration::from_millis(random.random_range(50..2_500))).await;
        let before = object_counts(&cluster, &ns).await;
        pair.sink().kill().unwrap();
        eprintln!("kill {}: {before:?}", kill + 1);
        pair.sink().restart().unwrap();
    }

    let counts = wait_for(PATIENCE, "the result and the Event of every Job", || async {
        let now = object_counts(&cluster, &ns).await;
        let expected = ObjectCounts { jobs: JOBS, annotated: JOBS, results: JOBS, pending: 0, events: JOBS };
        if now == expected { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await
    .unwrap();
    eprintln!("at the end: {counts:?}");

    let results = list::<ConfigMap>(&cluster, &ns, "job-handler/created=true").await;
    let mut with_result = BTreeSet::new();
    for result in &results {
        let data = result.data.as_ref().unwrap();
        let manifest: Value = serde_json::from_str(&data["result.json"]).unwrap();
        let uid = manifest["job"]["uid"].as_str().unwrap();
        let name = &names[uid];
        assert_eq!(result.name_any(), format!("{name}-results"));
        assert!(data["logs"].contains(&format!("output of {name}\n")), "{name}: {}", data["logs"]);
        assert_eq!(manifest["completeness"]["complete"], true, "{manifest}");
        assert!(with_result.insert(uid.to_owned()), "two results of {name}");
    }
    assert_eq!(with_result.len(), JOBS);
    assert!(
        list::<ConfigMap>(&cluster, &ns, "job-handler/shard").await.is_empty(),
        "there are orphaned shards"
    );

    let mut with_event = BTreeSet::new();
    for event in events(&cluster, &ns).await {
        let regarding = event.regarding.clone().unwrap();
        let (uid, name) = (regarding.uid.unwrap(), regarding.name.unwrap());
        assert_eq!(names[&uid], name);
        assert!(event.series.is_none());
        assert!(event.note.unwrap().contains(&format!("{name}-results")));
        assert!(with_event.insert(uid), "two Events about {name}");
    }
    assert_eq!(with_event.len(), JOBS);
    for job in list::<Job>(&cluster, &ns, "").await {
        let outcome = &job.annotations()["job-handler/status"];
        let failed = job.status.as_ref().unwrap().failed.unwrap_or_default() > 0;
        assert_eq!(outcome, if failed { "failed" } else { "completed" });
        assert_eq!(job.spec.unwrap().ttl_seconds_after_finished, Some(7200), "the TTL of the policy");
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ObjectCounts {
    jobs: usize,
    annotated: usize,
    results: usize,
    pending: usize,
    events: usize,
}

async fn object_counts(cluster: &Cluster, ns: &str) -> ObjectCounts {
    let jobs = list::<Job>(cluster, ns, "").await;
    let annotated = jobs.iter().filter(|job| job.annotations().contains_key("job-handler/results")).count();
    let results = list::<ConfigMap>(cluster, ns, "job-handler/created=true").await;
    let pending =
        results.iter().filter(|result| result.labels().contains_key("job-handler/announce")).count();
    let events = events(cluster, ns).await.len();
    ObjectCounts { jobs: jobs.len(), annotated, results: results.len(), pending, events }
}

async fn list<K>(cluster: &Cluster, ns: &str, labels: &str) -> Vec<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(cluster.client(), ns);
    api.list(&ListParams::default().labels(labels)).await.unwrap().items
}

async fn events(cluster: &Cluster, ns: &str) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(cluster.client(), ns);
    api.list(&ListParams::default().fields("reason=JobProcessing")).await.unwrap().items
}

async fn apply_policy(cluster: &Cluster, ns: &str) {
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": "all", "namespace": ns},
        "spec": {"results": {}, "stamp": {"ttlSecondsAfterFinished": {"default": 7200}}},
    });
    let api: Api<JobPolicy> = Api::namespaced(cluster.client(), ns);
    api.patch("all", &PatchParams::apply("test").force(), &Patch::Apply(&policy)).await.unwrap();
    wait_for(PATIENCE, "the policy to be Ready", || async {
        let status = api.get("all").await.map_err(|e| e.to_string())?.status.unwrap_or_default();
        match status.conditions.iter().find(|c| c.type_ == "Ready") {
            Some(ready) if ready.status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}
