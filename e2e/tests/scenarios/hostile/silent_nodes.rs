//! A kubelet that is silent and calls that fail for a moment: nothing is deleted while a log may still be read.

use job_handler_e2e::{
    PairOptions, TestNamespace,
    net::fault_proxy::{ProxyFault, Rule},
    wait_for,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::super::fixtures::{Fixture, PATIENCE, exclusive_scenario_with_options, job, scenario};

const LOG: &str = "the only copy\n";

/// A namespace whose Jobs are deleted once their results are stored.
async fn cleaned_namespace(fixture: &Fixture, name: &str) -> TestNamespace {
    let namespace = fixture.cluster.namespace(name).await.unwrap();
    let cleanup = json!({"succeededPolicy": "AfterHarvest", "failedPolicy": "AfterHarvest"});
    fixture.apply_policy(&namespace, "p", json!({"results": {}, "cleanup": cleanup})).await;
    namespace
}

/// Asserts that the result has the whole log.
fn assert_whole(result: &ConfigMap) {
    let data = result.data.as_ref().unwrap();
    let manifest: Value = serde_json::from_str(&data["result.json"]).unwrap();
    assert_eq!(manifest["completeness"]["complete"], true, "{manifest}");
    assert!(data["logs"].contains(LOG), "{}", data["logs"]);
}

#[test]
fn a_kubelet_that_is_silent_for_a_minute_loses_no_log() {
    scenario(|fixture| async move {
        let ns = cleaned_namespace(fixture, "silent").await;
        let simulation = [("run", "300ms"), ("log", LOG), ("log-hang", "true")];
        fixture.create(&ns, &job("silent", &[], &simulation)).await.unwrap();
        // Two harvests in vain: each asks three times and waits 10 s for an answer.
        let poll = || async { fixture.events(&ns, "ResultDelayed", "silent").await.pop().ok_or("none") };
        let event = wait_for(2 * PATIENCE, "the Event about the delay", poll).await.unwrap();
        assert!(event.note.as_ref().unwrap().contains("did not answer"), "{:?}", event.note);
        let kept = fixture.jobs(&ns).get("silent").await.unwrap();
        assert_eq!(kept.metadata.deletion_timestamp, None);
        assert!(fixture.config_maps(&ns).get_opt("silent-results").await.unwrap().is_none());

        let pods: Api<Pod> = Api::namespaced(fixture.client(), &ns);
        let pod = pods.list(&ListParams::default().labels("job-name=silent")).await.unwrap().items.remove(0);
        let answers = json!({"metadata": {"annotations": {"e2e.job-handler.io/log-hang": null}}});
        pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&answers)).await.unwrap();
        assert_whole(&fixture.wait_result(&ns, "silent").await);
        fixture.wait_job_deleted(&ns, "silent").await;
    });
}

#[test]
fn log_calls_that_fail_for_a_moment_lose_no_log() {
    let options = PairOptions { sink_proxy: true, ..PairOptions::default() };
    exclusive_scenario_with_options(options, async |fixture| {
        let ns = cleaned_namespace(fixture, "failing").await;
        // More than one harvest asks for: three times when the container ends, and three times when the Job has finished.
        let failing = Rule::new(ProxyFault::Refuse(500)).path("/log").times(9);
        let failed = fixture.pair.sink().proxy().add(failing);
        fixture.create(&ns, &job("failing", &[], &[("run", "300ms"), ("log", LOG)])).await.unwrap();
        assert_whole(&fixture.wait_result(&ns, "failing").await);
        assert_eq!(failed.count(), 9);
        fixture.wait_job_deleted(&ns, "failing").await;
    });
}
