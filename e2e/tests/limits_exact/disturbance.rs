//! The disturbances in the middle of a burst.

use std::time::Duration;

use job_handler_e2e::{Component, Member, pair::patch_stamping_webhooks, wait_for};
use k8s_openapi::api::{batch::v1::Job, core::v1::ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::fixtures::{BurstFixture, PATIENCE};

/// The Jobs that the quota allows, finished ones included.
const QUOTA: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BurstDisturbance {
    None,
    /// A quota denies everything after half of the Jobs, until it is deleted.
    QuotaDenies,
    /// SIGKILL.
    ReplicaKilled,
    /// SIGSTOP, and SIGCONT 3 s later.
    ReplicaPaused,
    ApiserverRestarted,
    /// Jobs are not stamped. The sinks are down, because they would also change the URL of `/validate`.
    MutateUnreachable,
}

impl BurstDisturbance {
    /// Before the burst.
    pub async fn prepare(self, fixture: &BurstFixture, namespace: &str) {
        match self {
            Self::QuotaDenies => {
                let quota = json!({
                    "metadata": {"name": "half"}, "spec": {"hard": {"count/jobs.batch": QUOTA.to_string()}},
                });
                let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
                let quotas: Api<ResourceQuota> = Api::namespaced(fixture.cluster.client(), namespace);
                quotas.create(&PostParams::default(), &quota).await.unwrap();
                wait_for(PATIENCE, "the quota to be in force", || async {
                    let status = quotas.get("half").await.map_err(|e| e.to_string())?.status;
                    let hard = status.unwrap_or_default().hard.unwrap_or_default();
                    if hard.is_empty() { Err("no status yet".to_owned()) } else { Ok(()) }
                })
                .await
                .unwrap();
            }
            Self::MutateUnreachable => {
                fixture.pair.sinks().iter().for_each(|sink| sink.kill().unwrap());
                let closed_port = job_handler_e2e::harness::ports::free().unwrap();
                point_mutate_at(fixture, closed_port).await;
                wait_stamped(fixture, namespace, false).await;
            }
            Self::None | Self::ReplicaKilled | Self::ReplicaPaused | Self::ApiserverRestarted => {}
        }
    }

    /// In the middle.
    pub async fn apply(self, fixture: &BurstFixture, namespace: &str, replica: usize) {
        let replica = fixture.pair.webhook(replica);
        match self {
            Self::ReplicaKilled => replica.kill().unwrap(),
            Self::ReplicaPaused => {
                replica.stop().unwrap();
                // The length of the pause, not a wait for a condition.
                tokio::time::sleep(Duration::from_secs(3)).await;
                replica.cont().unwrap();
            }
            Self::ApiserverRestarted => {
                fixture.cluster.component(Component::Apiserver).unwrap().restart().await.unwrap();
            }
            Self::QuotaDenies => {
                let jobs = fixture.jobs(namespace);
                let quotas: Api<ResourceQuota> = Api::namespaced(fixture.cluster.client(), namespace);
                wait_for(PATIENCE, "the quota to be used up", || async {
                    let list = jobs.list_metadata(&Default::default()).await.map_err(|e| e.to_string())?;
                    let count = list.items.len();
                    if count >= QUOTA { Ok(()) } else { Err(format!("{count} Jobs")) }
                })
                .await
                .unwrap();
                wait_denied(&jobs).await;
                quotas.delete("half", &DeleteParams::default()).await.unwrap();
            }
            Self::None | Self::MutateUnreachable => {}
        }
    }

    /// After the burst.
    pub async fn undo(self, fixture: &BurstFixture, namespace: &str, replica: usize) {
        match self {
            Self::ReplicaKilled => fixture.pair.webhook(replica).restart().unwrap(),
            Self::MutateUnreachable => {
                let first = fixture.jobs(namespace).get("j0").await.unwrap();
                assert!(!is_stamped(&first), "{:?}", first.metadata);
                point_mutate_at(fixture, fixture.pair.balancer().port()).await;
                fixture.pair.sinks().iter().for_each(|sink: &Member| sink.restart().unwrap());
                wait_stamped(fixture, namespace, true).await;
            }
            Self::None | Self::QuotaDenies | Self::ReplicaPaused | Self::ApiserverRestarted => return,
        }
        fixture.pair.wait_ready(PATIENCE).await.unwrap();
    }
}

/// Waits until the quota denies a suspended Job, which takes no slot of the limit.
async fn wait_denied(jobs: &Api<Job>) {
    wait_for(PATIENCE, "the quota to deny", || async {
        let suspended = serde_json::from_value(json!({
            "metadata": {"name": "over-quota"}, "spec": {"suspend": true, "template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}},
        }))
        .unwrap();
        match jobs.create(&PostParams::default(), &suspended).await {
            Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

async fn point_mutate_at(fixture: &BurstFixture, port: u16) {
    let url = format!("https://0.0.0.0:{port}/mutate");
    patch_stamping_webhooks(fixture.cluster.client(), &[("clientConfig/url", url.into())]).await.unwrap();
}

/// Waits until new Jobs are stamped, or are no longer stamped.
async fn wait_stamped(fixture: &BurstFixture, namespace: &str, expected: bool) {
    let jobs = fixture.jobs(namespace);
    let probe = serde_json::from_value(json!({
        "metadata": {"name": "probe"}, "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}}},
    }))
    .unwrap();
    wait_for(PATIENCE, &format!("new Jobs to be stamped: {expected}"), || async {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let created = jobs.create(&dry_run, &probe).await.map_err(|error| error.to_string())?;
        if is_stamped(&created) == expected { Ok(()) } else { Err(format!("{:?}", created.metadata)) }
    })
    .await
    .unwrap();
}

fn is_stamped(job: &Job) -> bool {
    job.annotations().contains_key("job-handler/stamped")
}
