//! A node, namespace or Job with slow logs does not delay others.

use job_handler_e2e::TestNamespace;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::fixtures::{Fixture, PATIENCE, exclusive_scenario, job};

/// More than the sink reconciles concurrently.
const HANGING: usize = 40;

async fn wait_finished(fixture: &Fixture, namespace: &str, number: usize) {
    let jobs = fixture.jobs(namespace);
    fixture
        .wait(&format!("{number} Jobs of {namespace} to finish"), || async {
            let all = jobs.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            let finished =
                all.iter().filter(|job| job_handler_e2e::cluster::jobs::finished(job).is_some()).count();
            if finished == number { Ok(()) } else { Err(format!("{finished} of {number}")) }
        })
        .await;
}

/// Logs count as lost soon after the Job has finished.
async fn harvested_namespace(fixture: &Fixture, name: &str) -> TestNamespace {
    let namespace = fixture.cluster.namespace(name).await.unwrap();
    let results = json!({"results": {"harvestDeadlineSeconds": 60}});
    fixture.apply_policy(&namespace, "results", results).await;
    namespace
}

async fn results(fixture: &Fixture, namespace: &str) -> kube::Result<Vec<ConfigMap>> {
    let created = ListParams::default().labels("job-handler/created=true");
    Ok(fixture.config_maps(namespace).list(&created).await?.items)
}

#[test]
fn a_node_with_hanging_logs_delays_no_other_harvest() {
    exclusive_scenario(async |fixture| {
        let (slow, healthy) =
            (harvested_namespace(fixture, "slow").await, harvested_namespace(fixture, "healthy").await);
        // All on one node, so that they wait for the concurrency limit of that node.
        for n in 0..HANGING {
            let mut hangs = job(&format!("hangs-{n}"), &[], &[("run", "100ms"), ("log-hang", "true")]);
            hangs["spec"]["template"]["spec"]["nodeName"] = json!("node-0");
            fixture.create(&slow, &hangs).await.unwrap();
        }
        wait_finished(fixture, &slow, HANGING).await;
        // Only Jobs on the same node wait.
        let nodes: Api<Node> = Api::all(fixture.client());
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        nodes.patch("node-0", &PatchParams::default(), &cordon).await.unwrap();
        for round in 0..4 {
            let name = format!("healthy-{round}");
            let simulation = [("run", "100ms"), ("log", "output of the Job\n")];
            fixture.create(&healthy, &job(&name, &[], &simulation)).await.unwrap();
            wait_finished(fixture, &healthy, round + 1).await;
            let result = fixture.wait_result(&healthy, &name).await;
            assert!(result.data.unwrap()["logs"].contains("output of the Job"));
        }
        let stored = results(fixture, &slow).await.unwrap().len();
        assert!(stored < HANGING, "the healthy Jobs waited for all that hang, or none hung");
        // Their results are stored in the end, and list the lost logs.
        job_handler_e2e::wait_for(4 * PATIENCE, "the results of the Jobs with hanging logs", || async {
            let all = results(fixture, &slow).await.map_err(|error| error.to_string())?;
            let manifests = all.iter().filter_map(|map| map.data.as_ref()?.get("result.json"));
            let with_node = manifests.filter(|manifest| manifest.contains("node")).count();
            if with_node == HANGING { Ok(()) } else { Err(format!("{with_node} of {HANGING}")) }
        })
        .await
        .unwrap();
    });
}
