//! Replicas that write the same ledger: all but one pass on what they are asked to that one, and do without it where it
//! is gone or stands still.

use std::time::Duration;

use futures::future::join_all;
use job_handler_e2e::Member;
use kube::api::ListParams;
use serde_json::json;

use super::fixtures::{Fixture, PATIENCE, exclusive_scenario_with_replicas, job};

/// Creates that come at once, in a burst.
const BURST: usize = 48;
/// Longer than the others wait for an answer, and shorter than the apiserver waits for theirs.
const STANDSTILL: Duration = Duration::from_secs(2);

#[test]
fn replicas_let_one_decide_and_do_without_it() {
    exclusive_scenario_with_replicas(3, async |fixture| {
        let namespace = fixture.cluster.namespace("one-decides").await.unwrap();
        fixture
            .apply_policy(&namespace, "builds", json!({"limits": [{"name": "many", "maxActiveJobs": 1000}]}))
            .await;
        let webhooks = fixture.pair.webhooks();
        let (mut made, mut tries) = (0, 0);
        // Until some came in each other's way: what follows a write that came too late is passed on.
        while sum(webhooks, "passed_on").await <= sum(webhooks, "passed_on_in_vain").await {
            tries += 1;
            assert!(tries < 10, "nothing was passed on");
            made += burst(fixture, &namespace, format!("a{tries}")).await;
        }
        // Each of them, so that one is the one that decides.
        for (n, member) in webhooks.iter().enumerate() {
            let kill = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                member.kill().unwrap();
                member.restart().unwrap();
                member.wait_ready(PATIENCE).await.unwrap();
            };
            made += tokio::join!(burst(fixture, &namespace, format!("b{n}")), kill).0;
            let stand_still = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                member.stop().unwrap();
                tokio::time::sleep(STANDSTILL).await;
                member.cont().unwrap();
            };
            made += tokio::join!(burst(fixture, &namespace, format!("c{n}")), stand_still).0;
        }
        let jobs = fixture.jobs(&namespace).list(&ListParams::default()).await.unwrap().items;
        assert_eq!(jobs.len(), made);
    });
}

/// Returns how many Jobs it has made: all of them, by clients that try again.
async fn burst(fixture: &Fixture, namespace: &str, name: String) -> usize {
    let name = &name;
    let creates = (0..BURST).map(|n| async move {
        let job = job(&format!("{name}-{n}"), &[], &[("end", "Hang")]);
        let mut last = String::new();
        for _ in 0..60 {
            match fixture.create(namespace, &job).await {
                Ok(_) => return,
                // An earlier try, whose answer was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => return,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("{name}-{n}: {last}");
    });
    join_all(creates).await.len()
}

/// Of a counter about limits, over all replicas.
async fn sum(webhooks: &[Member], name: &str) -> f64 {
    let line = format!("job_handler_limit_{name}_total ");
    let mut sum = 0.0;
    for member in webhooks {
        let (_, text) = member.get("/metrics").await.unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(&line)?.trim().parse::<f64>().ok());
        sum += value.expect("a counter");
    }
    sum
}
