//! Whatever goes wrong with some Jobs, the harvest of the others goes on; what can be had of the disturbed ones is kept,
//! and told. Prints how fast the others were beside those, as a ratio to the same number without; the benchmark
//! `harvest` has the figures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

use std::time::Duration;

use job_handler_e2e::{
    bench::harvest::fault_isolation::{Ground, Sizes, Trouble},
    cluster::E2E_KUBECONFIG,
    wait_for,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, ResourceQuota},
    events::v1::Event,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);
const SIZES: Sizes = Sizes { rounds: 2, jobs: 150, ill: 12, pods: 200, each: false };
/// Far below what is aimed for (0.9), for the machine may be busy; far above what is left where one waits for another.
const LEAST: f64 = 0.5;

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on() {
    if std::env::var_os(E2E_KUBECONFIG).is_some_and(|path| !path.is_empty()) {
        eprintln!("not run: it stops components of a cluster of its own");
        return;
    }
    let mut ground = Ground::new(SIZES.rounds * Ground::wants(&Trouble::ALL)).await.unwrap();
    let mut ratios = Vec::new();
    for round in 0..SIZES.rounds {
        let compared = ground.compare(&Trouble::ALL, SIZES).await.unwrap();
        eprintln!(
            "{} Jobs: {:.0}/s beside disturbed ones, {:.0}/s without: {:.2}",
            SIZES.jobs,
            compared.beside,
            compared.without,
            compared.ratio()
        );
        ratios.push(compared.ratio());
        if round == 0 {
            for (trouble, namespace) in &compared.places {
                outcome(&ground, *trouble, namespace).await;
            }
        }
        ground.calm(&compared.places).await.unwrap();
        if compared.ratio() >= LEAST {
            return;
        }
        // Once more: something else may have taken the machine.
    }
    panic!("the others are held up: {ratios:?} of the rate without");
}

/// What became of the disturbed ones.
async fn outcome(ground: &Ground, trouble: Trouble, namespace: &str) {
    match trouble {
        // The outcome is kept, and the result says what is missing.
        Trouble::Admission => {
            for result in stored(ground, namespace, SIZES.ill).await {
                let data = result.data.as_ref().unwrap();
                assert!(!data.contains_key("logs") && data["status"] == "completed", "{data:?}");
                let manifest = manifest(&result);
                assert_eq!(manifest["completeness"]["complete"], false);
                assert!(manifest["completeness"]["lost"].to_string().contains("no logs here"), "{manifest}");
            }
        }
        // Nothing can be kept: that is told, and it is kept once there is room.
        Trouble::Quota => {
            wait_for(PATIENCE, "the lost results to be told of", || async {
                let api: Api<Event> = Api::namespaced(ground.cluster.client(), namespace);
                let lost = ListParams::default().fields("reason=ResultLost");
                let told = api.list(&lost).await.map_err(|error| error.to_string())?.items;
                let word = |event: &Event| event.note.as_ref().is_some_and(|note| note.contains("quota"));
                if told.len() == SIZES.ill && told.iter().all(word) {
                    Ok(())
                } else {
                    Err(told.len().to_string())
                }
            })
            .await
            .unwrap();
            let quotas: Api<ResourceQuota> = Api::namespaced(ground.cluster.client(), namespace);
            quotas.delete("full", &DeleteParams::default()).await.unwrap();
            for result in stored(ground, namespace, SIZES.ill).await {
                let completeness = &manifest(&result)["completeness"];
                assert_eq!(completeness["complete"], true, "{completeness}");
            }
        }
        Trouble::Hanging => {
            for result in stored(ground, namespace, SIZES.ill).await {
                assert_eq!(manifest(&result)["completeness"]["complete"], false);
            }
        }
        Trouble::ManyPods => {
            let manifest = manifest(&stored(ground, namespace, 1).await[0]);
            let listed = manifest["pods"].as_array().unwrap().len() as u64;
            assert_eq!(listed + manifest["podsNotListed"].as_u64().unwrap(), SIZES.pods as u64);
            assert_eq!(manifest["completeness"]["complete"], true, "{}", manifest["completeness"]);
        }
        Trouble::ReceiverDown => {
            for result in stored(ground, namespace, SIZES.ill).await {
                assert_ne!(manifest(&result)["cloudEventsPending"], json!(null));
            }
        }
        // Nobody is there to be told; that nothing else suffers is all.
        Trouble::Terminating | Trouble::Deleted => {}
    }
}

async fn stored(ground: &Ground, namespace: &str, number: usize) -> Vec<ConfigMap> {
    wait_for(PATIENCE, &format!("{number} results in {namespace}"), || async {
        let all = ground.results(namespace).await.map_err(|error| error.to_string())?;
        if all.len() == number { Ok(all) } else { Err(all.len().to_string()) }
    })
    .await
    .unwrap()
}

fn manifest(result: &ConfigMap) -> Value {
    serde_json::from_str(&result.data.as_ref().unwrap()["result.json"]).unwrap()
}
