//! The pair on the cluster: replicas behind the load balancer, killed and restarted one by one.

use std::time::Duration;

use job_handler_e2e::cluster::jobs::job;
use job_handler_e2e::{Cluster, ClusterOptions, Pair, PairOptions, wait_for};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn replicas_share_reviews_and_survive_the_kill_of_one() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let options = PairOptions { webhooks: 2, ..PairOptions::default() };
    let pair = Pair::install(&cluster, options).await.unwrap();
    let namespace = cluster.namespace("pair").await.unwrap();

    // Concurrently, so that the API server needs more than one connection.
    let names: Vec<String> = (0..20).map(|index| format!("burst-{index}")).collect();
    let jobs: Vec<_> = names.iter().map(|name| job(name, &[("run", "0s")])).collect();
    let creates = jobs.iter().map(|job| cluster.create_job(&namespace, job));
    futures::future::try_join_all(creates).await.unwrap();
    let connections = pair.balancer().connections();
    assert!(connections.iter().all(|count| *count > 0), "{connections:?}");

    // Neither program is the admin, and neither was denied anything.
    let log = std::fs::read_to_string(cluster.audit_log().unwrap()).unwrap();
    let entries: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for program in ["job-handler-webhook", "job-handler-sink"] {
        let own: Vec<_> = entries
            .iter()
            .filter(|entry| entry["userAgent"].as_str().is_some_and(|agent| agent.starts_with(program)))
            .collect();
        assert!(!own.is_empty(), "{program} is not in the audit log");
        for entry in own {
            let user = format!("system:serviceaccount:job-handler-system:{program}");
            assert_eq!(entry["user"]["username"], user, "{entry}");
            assert_ne!(entry["responseStatus"]["code"], 403, "{entry}");
        }
    }

    pair.webhook(0).kill().unwrap();
    for index in 0..5 {
        let name = format!("one-left-{index}");
        cluster.create_job(&namespace, &job(&name, &[("run", "0s")])).await.unwrap();
    }
    pair.webhook(0).restart().unwrap();
    pair.wait_ready(SOON).await.unwrap();
    let back = async || if pair.balancer().ready() == [true, true] { Ok(()) } else { Err("not yet") };
    wait_for(SOON, "the balancer to use the replica again", back).await.unwrap();

    pair.sink().stop().unwrap();
    pair.sink().cont().unwrap();
    pair.sink().kill().unwrap();
    pair.sink().restart().unwrap();
    pair.sink().wait_ready(SOON).await.unwrap();
}
