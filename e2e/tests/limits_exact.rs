//! A limit holds with three replicas that share a ledger: bursts, a replica that dies in the middle, attempts that come to
//! nothing. Proved from a watch of all Jobs: at no resourceVersion are more active than the limit allows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, future::join_all};
use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions, wait_for};
use job_handler_shared::{job::JobSnapshot, ledger::JobLedger, policy::JobPolicy};
use k8s_openapi::api::{batch::v1::Job, core::v1::ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

const CREATES: usize = 200;
const CONNECTIONS: usize = 20;
/// At a limit of 1 the Jobs run one after the other, and each passes through the Job controller and a simulated node.
const PATIENCE: Duration = Duration::from_secs(900);

struct World {
    cluster: Cluster,
    pair: Pair,
}

/// One cluster for all: booting costs more than a burst.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_exact_with_three_replicas() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let pair = Pair::install(&cluster, PairOptions { webhooks: 3, ..PairOptions::default() }).await.unwrap();
    let world = World { cluster, pair };
    let seed: u64 = std::env::var("SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let max = random.random_range(1..=25);
    burst(&world, "burst", max, async {}).await;

    let max = random.random_range(1..=25);
    burst(&world, "killed", max, async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        world.pair.webhook(1).kill().unwrap();
    })
    .await;
    world.pair.webhook(1).restart().unwrap();
    world.pair.wait_ready(Duration::from_secs(60)).await.unwrap();

    an_attempt_that_came_to_nothing_gives_its_slot_back(&world).await;
}

/// Clients that try again until each Job is created, over so many connections.
async fn burst(world: &World, name: &str, max: usize, meanwhile: impl Future<Output = ()>) {
    let ns = world.cluster.namespace(name).await.unwrap();
    world.limit(&ns, max).await;
    let jobs: Api<Job> = Api::namespaced(world.cluster.client(), &ns);
    let from = jobs.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let history = tokio::spawn(history(jobs, from, CREATES));
    let begun = Instant::now();
    let clients = join_all((0..CONNECTIONS).map(|connection| {
        // A client of its own is a connection of its own.
        let client = world.cluster.client();
        let jobs: Api<Job> = Api::namespaced(client, &ns);
        async move {
            for n in (connection..CREATES).step_by(CONNECTIONS) {
                create_in_the_end(&jobs, &job(&format!("j{n}"), "300ms")).await;
            }
        }
    }));
    tokio::join!(clients, meanwhile);
    let created = begun.elapsed();
    let (most, events) = history.await.unwrap();
    println!("{name}: max {max}, at most {most} active, {events} events, {CREATES} created in {created:.1?}");
    assert!(most <= max, "{most} active Jobs at a limit of {max}");
    assert!(most > 0);
    // Nothing is left behind in the ledger.
    let ledgers: Api<JobLedger> = Api::namespaced(world.cluster.client(), "job-handler-system");
    wait_for(Duration::from_secs(90), "the ledger to be empty", || async {
        let book =
            ledgers.get(&ns).await.map_err(|e| e.to_string())?.spec.book().map_err(|e| e.to_string())?;
        if book.pending.is_empty() { Ok(()) } else { Err(format!("{} names pending", book.pending.len())) }
    })
    .await
    .unwrap();
}

async fn create_in_the_end(jobs: &Api<Job>, job: &Job) {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(50);
    loop {
        match jobs.create(&PostParams::default(), job).await {
            Ok(_) => return,
            // The answer to an earlier try was lost, and it was stored.
            Err(kube::Error::Api(status)) if status.code == 409 => return,
            Err(kube::Error::Api(status)) => {
                let expected = [403, 429, 500, 503].contains(&status.code);
                assert!(expected && Instant::now() < deadline, "{}: {}", status.code, status.message);
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(400));
    }
}

/// Follows every write of every Job until so many have finished. Returns how many were active at most, at any
/// resourceVersion, and how many writes were seen.
async fn history(jobs: Api<Job>, from: String, finishes: usize) -> (usize, usize) {
    let mut active: BTreeMap<String, bool> = BTreeMap::new();
    let (mut most, mut events, mut finished, mut from) = (0, 0, 0, from);
    let deadline = Instant::now() + PATIENCE;
    while finished < finishes {
        assert!(Instant::now() < deadline, "{finished} of {finishes} finished");
        let mut stream = jobs.watch(&WatchParams::default().timeout(30), &from).await.unwrap().boxed();
        while let Some(event) = stream.try_next().await.unwrap() {
            match event {
                WatchEvent::Added(job) | WatchEvent::Modified(job) => {
                    from = job.resource_version().unwrap();
                    active.insert(job.uid().unwrap(), JobSnapshot::from(&job).is_active());
                }
                WatchEvent::Deleted(job) => {
                    from = job.resource_version().unwrap();
                    active.insert(job.uid().unwrap(), false);
                }
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(error) => panic!("{error:?}"),
            }
            events += 1;
            most = most.max(active.values().filter(|active| **active).count());
            finished = active.values().filter(|active| !**active).count();
            if finished >= finishes {
                break;
            }
        }
    }
    (most, events)
}

/// A quota denies the Job after us: its attempt holds the one slot until it runs out.
async fn an_attempt_that_came_to_nothing_gives_its_slot_back(world: &World) {
    let ns = world.cluster.namespace("denied").await.unwrap();
    world.limit(&ns, 1).await;
    let quotas: Api<ResourceQuota> = Api::namespaced(world.cluster.client(), &ns);
    let quota = serde_json::from_value(json!({
        "metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}},
    }))
    .unwrap();
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    let jobs: Api<Job> = Api::namespaced(world.cluster.client(), &ns);
    let refused = wait_for(Duration::from_secs(20), "the quota to deny", || async {
        match jobs.create(&PostParams::default(), &job("a", "60s")).await {
            Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => Ok(status.code),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    assert_eq!(refused, 403);
    let begun = Instant::now();
    quotas.delete("none", &Default::default()).await.unwrap();
    let (code, message) = match jobs.create(&PostParams::default(), &job("b", "60s")).await {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("the attempt holds the slot: {other:?}"),
    };
    assert!(code == 403 && message.contains("1 just admitted"), "{code}: {message}");
    wait_for(Duration::from_secs(75), "the slot", || async {
        let created = jobs.create(&PostParams::default(), &job("b", "60s")).await;
        created.map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    println!("denied: the slot came back after {:.1?}", begun.elapsed());
}

impl World {
    /// Applies a limit and waits until it is in force.
    async fn limit(&self, namespace: &str, max: usize) {
        let policies: Api<JobPolicy> = Api::namespaced(self.cluster.client(), namespace);
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": "builds"},
            "spec": {"limits": [{"name": "few", "maxActiveJobs": max}]},
        });
        policies.patch("builds", &PatchParams::apply("test").force(), &Patch::Apply(&policy)).await.unwrap();
        wait_for(Duration::from_secs(30), "the policy to be Ready", || async {
            let status = policies.get("builds").await.map_err(|e| e.to_string())?.status.unwrap_or_default();
            let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
            if ready { Ok(()) } else { Err(format!("{:?}", status.conditions)) }
        })
        .await
        .unwrap();
    }
}

fn job(name: &str, run: &str) -> Job {
    let job: Value = json!({
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {"e2e.job-handler.io/run": run}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]},
        }},
    });
    serde_json::from_value(job).unwrap()
}
