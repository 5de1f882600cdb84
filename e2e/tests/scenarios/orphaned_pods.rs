//! Pods that outlive their Job, and Jobs that are relabelled while they run, keep their slots.

use job_handler_shared::policy::spec::ClusterJobPolicy;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, job, refusal, scenario};

const HANGS: [(&str, &str); 1] = [("end", "Hang")];

fn limit(max: u32) -> Value {
    json!({"limits": [{"name": "few", "maxActiveJobs": max}], "results": {}})
}

async fn create(fixture: &Fixture, ns: &str, name: &str, labels: &[(&str, &str)]) -> Result<(), String> {
    match fixture.create(ns, &job(name, labels, &HANGS)).await {
        Ok(_) => Ok(()),
        refused => Err(refusal(refused).1),
    }
}

/// Creates a Job and waits until its pod runs.
async fn start(fixture: &Fixture, ns: &str, name: &str, labels: &[(&str, &str)]) {
    create(fixture, ns, name, labels).await.unwrap();
    let pods = Api::<Pod>::namespaced(fixture.client(), ns);
    let of_job = ListParams::default().labels(&format!("job-name={name}")).fields("status.phase=Running");
    fixture
        .wait("its pod to run", || async {
            let running = pods.list(&of_job).await.map_err(|e| e.to_string())?.items.len();
            if running == 1 { Ok(()) } else { Err(format!("{running} run")) }
        })
        .await;
}

/// Deletes a Job as a client does that sends no options: the API's default for `batch/v1` leaves the pods.
async fn delete_plainly(fixture: &Fixture, ns: &str, name: &str) {
    let path = format!("/apis/batch/v1/namespaces/{ns}/jobs/{name}");
    fixture.cluster.kubectl(&["delete", "--raw", &path]).await.unwrap();
    fixture.wait_job_deleted(ns, name).await;
}

async fn end_pods(fixture: &Fixture, ns: &str, name: &str) {
    let pods = Api::<Pod>::namespaced(fixture.client(), ns);
    let of_job = ListParams::default().labels(&format!("job-name={name}"));
    let now = DeleteParams::default().grace_period(0);
    for pod in pods.list(&of_job).await.unwrap().items {
        pods.delete(&pod.metadata.name.unwrap(), &now).await.unwrap();
    }
}

async fn wait_admitted(fixture: &Fixture, ns: &str, name: &str) {
    fixture.wait("a slot to be free", || async { create(fixture, ns, name, &[]).await }).await;
}

#[test]
fn pods_of_jobs_that_are_deleted_by_the_default_of_the_api_hold_their_slots() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("orphans").await.unwrap();
        fixture.apply_policy(&ns, "p", limit(2)).await;
        for name in ["one", "two"] {
            start(fixture, &ns, name, &[]).await;
        }
        for name in ["one", "two"] {
            delete_plainly(fixture, &ns, name).await;
        }
        for again in ["three", "one"] {
            let refused = create(fixture, &ns, again, &[]).await.unwrap_err();
            assert!(refused.contains("0 running, 2 held by pods of deleted Jobs"), "{refused}");
            assert!(refused.contains("(deleted)"), "{refused}");
        }
        let said = fixture
            .wait("OverLimit to name the pods", || async {
                let status = fixture.policies(&ns).get("p").await.unwrap().status.unwrap_or_default();
                let over = status.conditions.into_iter().find(|c| c.type_ == "OverLimit").ok_or("none")?;
                // The sink may have seen the first one only.
                let names_both = over.message.contains("2 slots held by pods of deleted Jobs");
                if names_both { Ok(over) } else { Err("not yet") }
            })
            .await;
        assert!(said.reason == "OrphanedPods" && said.message.contains("no result is stored"), "{said:?}");
        end_pods(fixture, &ns, "one").await;
        wait_admitted(fixture, &ns, "three").await;
        let refused = create(fixture, &ns, "four", &[]).await.unwrap_err();
        assert!(refused.contains("1 held by pods of deleted Jobs"), "{refused}");
    });
}

#[test]
fn a_job_that_is_created_again_under_its_name_counts_beside_the_pods_of_the_deleted_one() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("orphanagain").await.unwrap();
        fixture.apply_policy(&ns, "p", limit(2)).await;
        start(fixture, &ns, "one", &[]).await;
        delete_plainly(fixture, &ns, "one").await;
        create(fixture, &ns, "one", &[]).await.unwrap();
        let refused = create(fixture, &ns, "two", &[]).await.unwrap_err();
        assert!(refused.contains("2 active jobs, max allowed: 2"), "{refused}");
        assert!(refused.contains("1 held by pods of deleted Jobs"), "{refused}");
    });
}

#[test]
fn a_limit_of_the_cluster_counts_pods_of_deleted_jobs() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("orphancluster").await.unwrap();
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": ns.name()},
            "spec": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name()}},
                "limits": [{"name": "all", "maxActiveJobs": 1, "scope": "Cluster"}],
            },
        });
        let policies = Api::<ClusterJobPolicy>::all(fixture.client());
        let params = PatchParams::apply("scenario").force();
        policies.patch(ns.name(), &params, &Patch::Apply(&policy)).await.unwrap();
        fixture
            .wait("the ClusterJobPolicy to be Ready", || async {
                let status = policies.get(ns.name()).await.unwrap().status.unwrap_or_default();
                let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready").ok_or("none")?;
                if ready.status == "True" { Ok(()) } else { Err("not yet") }
            })
            .await;
        start(fixture, &ns, "one", &[]).await;
        delete_plainly(fixture, &ns, "one").await;
        let refused = create(fixture, &ns, "two", &[]).await.unwrap_err();
        assert!(
            refused.contains("counted over the cluster; 0 running, 1 held by pods of deleted"),
            "{refused}"
        );
        end_pods(fixture, &ns, "one").await;
        wait_admitted(fixture, &ns, "two").await;
        policies.delete(ns.name(), &DeleteParams::default()).await.unwrap();
    });
}

#[test]
fn a_running_job_keeps_its_slot_when_its_labels_take_it_out_of_the_limit() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("relabelled").await.unwrap();
        let spec = json!({
            "jobSelector": {"matchLabels": {"app": "a"}}, "limits": [{"name": "few", "maxActiveJobs": 1}],
        });
        fixture.apply_policy(&ns, "p", spec).await;
        start(fixture, &ns, "one", &[("app", "a")]).await;
        let jobs: Api<Job> = fixture.jobs(&ns);
        let relabel = async |app: &str| {
            let change = Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
            jobs.patch("one", &PatchParams::default(), &change).await.unwrap();
        };
        let refused = async || create(fixture, &ns, "two", &[("app", "a")]).await.unwrap_err();
        relabel("b").await;
        assert!(refused().await.contains("1 running"));
        relabel("a").await;
        let message = refused().await;
        assert!(message.contains("1 active jobs, max allowed: 1"), "it counts once: {message}");
        relabel("b").await;
        let background = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        jobs.delete("one", &background).await.unwrap();
        fixture
            .wait("a slot to be free", || async { create(fixture, &ns, "two", &[("app", "a")]).await })
            .await;
    });
}
