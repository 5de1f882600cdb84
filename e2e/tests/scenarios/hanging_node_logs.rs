//! A node, namespace or Job with slow logs does not delay others.

use std::time::{Duration, Instant};

use job_handler_e2e::TestNamespace;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::fixtures::{Fixture, PATIENCE, exclusive_scenario, job};

/// Far below what one log call to a node that hangs may take (10 s), and what the 40 of them take in all.
const A_FEW_SECONDS: Duration = Duration::from_secs(6);
/// More than the sink works on at a time.
const HANGING: usize = 40;

async fn finished(fixture: &Fixture, namespace: &str, number: usize) {
    let jobs = fixture.jobs(namespace);
    fixture
        .wait(&format!("{number} Jobs of {namespace} to finish"), || async {
            let all = jobs.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let done =
                all.iter().filter(|job| job_handler_e2e::cluster::jobs::finished(job).is_some()).count();
            if done == number { Ok(()) } else { Err(format!("{done} of {number}")) }
        })
        .await;
}

async fn harvest(fixture: &Fixture, name: &str) -> TestNamespace {
    let namespace = fixture.cluster.namespace(name).await.unwrap();
    fixture.apply_policy(&namespace, "results", json!({"results": {}})).await;
    namespace
}

async fn results(fixture: &Fixture, namespace: &str) -> kube::Result<Vec<ConfigMap>> {
    let made = ListParams::default().labels("job-handler/created=true");
    Ok(fixture.config_maps(namespace).list(&made).await?.items)
}

#[test]
fn a_node_with_hanging_logs_delays_no_other_harvest() {
    exclusive_scenario(async |fixture| {
        let (slow, well) = (harvest(fixture, "slow").await, harvest(fixture, "well").await);
        // All on one node, so that it is that node's line that they stand in.
        for n in 0..HANGING {
            let mut hangs = job(&format!("hangs-{n}"), &[], &[("run", "100ms"), ("log-hang", "true")]);
            hangs["spec"]["template"]["spec"]["nodeName"] = json!("node-0");
            fixture.create(&slow, &hangs).await.unwrap();
        }
        finished(fixture, &slow, HANGING).await;
        // Only Jobs on the same node wait.
        let nodes: Api<Node> = Api::all(fixture.client());
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        nodes.patch("node-0", &PatchParams::default(), &cordon).await.unwrap();
        for round in 0..4 {
            let name = format!("well-{round}");
            let play = [("run", "100ms"), ("log", "here I am\n")];
            fixture.create(&well, &job(&name, &[], &play)).await.unwrap();
            finished(fixture, &well, round + 1).await;
            let since = Instant::now();
            let result = fixture.wait_result(&well, &name).await;
            assert!(since.elapsed() < A_FEW_SECONDS, "{name} took {:?}", since.elapsed());
            assert!(result.data.unwrap()["logs"].contains("here I am"));
        }
        let stored = results(fixture, &slow).await.unwrap().len();
        assert!(stored < HANGING, "their logs did not hang: this shows nothing");
        // They come to an end, too: with what is known, and what was lost.
        job_handler_e2e::wait_for(4 * PATIENCE, "the results of those that hang", || async {
            let all = results(fixture, &slow).await.map_err(|error| error.to_string())?;
            let whole = all.iter().filter_map(|map| map.data.as_ref()?.get("result.json"));
            let told = whole.filter(|manifest| manifest.contains("node")).count();
            if told == HANGING { Ok(()) } else { Err(format!("{told} of {HANGING}")) }
        })
        .await
        .unwrap();
    });
}
