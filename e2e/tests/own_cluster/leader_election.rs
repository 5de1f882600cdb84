//! Two sinks: when the leader is killed or paused, the other takes over, and no result or Event is lost or duplicated.

use std::time::Duration;

use job_handler_e2e::{Cluster, ClusterOptions, Member, Pair, PairOptions, wait_for};
use job_handler_shared::policy::spec::JobPolicy;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;

/// Longer than a Lease (15 s) and the interval of its renewal (3 s).
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn another_sink_becomes_leader() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let options = PairOptions { webhooks: 2, ..PairOptions::default() };
    let pair = Pair::install(&cluster, options).await.unwrap();
    let ns = cluster.namespace("leaders").await.unwrap();
    let policy: JobPolicy = serde_json::from_value(json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy", "metadata": {"name": "all"},
        "spec": {"results": {}},
    }))
    .unwrap();
    Api::<JobPolicy>::namespaced(cluster.client(), &ns)
        .create(&PostParams::default(), &policy)
        .await
        .unwrap();

    let first = leader(&cluster).await;
    harvest(&cluster, &ns, "with-the-first").await;
    // Pause the leader, as on a node without network. When it continues, it must not act as leader.
    member(&pair, &first).stop().unwrap();
    harvest(&cluster, &ns, "while-the-first-is-paused").await;
    let second = leader(&cluster).await;
    assert_ne!(first, second);
    member(&pair, &first).cont().unwrap();
    harvest(&cluster, &ns, "when-the-first-is-back").await;
    assert_eq!(leader(&cluster).await, second, "the first sink does not take the Lease back");
    let (_, metrics) = member(&pair, &first).get("/metrics").await.unwrap();
    assert!(metrics.contains("job_handler_leader 0"), "{metrics}");

    member(&pair, &second).kill().unwrap();
    harvest(&cluster, &ns, "after-the-second-was-killed").await;
    assert_eq!(leader(&cluster).await, first);

    let events: Api<Event> = Api::namespaced(cluster.client(), &ns);
    let events = events.list(&ListParams::default().fields("reason=JobProcessing")).await.unwrap();
    assert_eq!(events.items.len(), 4);
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), &ns);
    let results = maps.list(&ListParams::default().labels("job-handler/created=true")).await.unwrap();
    assert_eq!(results.items.len(), 4);

    // Until it expires, the Lease of a webhook counts as a replica that enforces the policies.
    let leases: Api<Lease> = Api::namespaced(cluster.client(), "job-handler-system");
    let of_webhooks = ListParams::default().labels("job-handler/component=webhook");
    assert_eq!(leases.list(&of_webhooks).await.unwrap().items.len(), 2);
    let status = pair.webhook(0).process().terminate(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(
        leases.list(&of_webhooks).await.unwrap().items.len(),
        1,
        "it deletes its Lease before it ends"
    );
}

fn member<'a>(pair: &'a Pair, name: &str) -> &'a Member {
    pair.sinks().iter().find(|sink| sink.name() == name).unwrap()
}

async fn leader(cluster: &Cluster) -> String {
    let api: Api<Lease> = Api::namespaced(cluster.client(), "job-handler-system");
    wait_for(PATIENCE, "a leader", || async {
        let lease = api.get("job-handler-sink").await.map_err(|e| e.to_string())?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        if holder.is_empty() { Err("no holder".to_owned()) } else { Ok(holder) }
    })
    .await
    .unwrap()
}

/// Runs a Job and waits until its result is stored and its Event published.
async fn harvest(cluster: &Cluster, ns: &str, name: &str) {
    let job = job_handler_e2e::cluster::jobs::job(name, &[("run", "200ms"), ("log", "a line\n")]);
    cluster.create_job(ns, &job).await.unwrap();
    let api: Api<ConfigMap> = Api::namespaced(cluster.client(), ns);
    wait_for(PATIENCE, &format!("the result of {name}"), || async {
        let result = api.get(&format!("{name}-results")).await.map_err(|e| e.to_string())?;
        if result.metadata.labels.unwrap_or_default().contains_key("job-handler/announce") {
            return Err("the Event is pending".to_owned());
        }
        Ok(())
    })
    .await
    .unwrap();
}
