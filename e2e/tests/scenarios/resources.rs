//! `stamp.containerResources`: defaults for containers without resources.

use serde_json::json;

use super::fixtures::{annotation, job, refusal, scenario};

#[test]
fn only_containers_without_resources_get_the_defaults() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("resources").await.unwrap();
        let resources = json!({"limits": {"cpu": "0.5", "memory": "1024Mi"}, "requests": {"cpu": 0}});
        fixture.apply_policy(&ns, "builds", json!({"stamp": {"containerResources": resources}})).await;
        let mut job_a = job("a", &[], &[("run", "60s")]);
        job_a["spec"]["template"]["spec"]["initContainers"] = json!([{"name": "init", "image": "busybox"}]);
        job_a["spec"]["template"]["spec"]["containers"] = json!([
            {"name": "main", "image": "busybox"},
            {"name": "own", "image": "busybox", "resources": {"requests": {"cpu": "2"}}},
        ]);
        let created = fixture.create(&ns, &job_a).await.unwrap();
        let stamped = annotation(&created, "job-handler/stamped").to_owned();
        assert!(stamped.contains("containerResources: init, main (default of JobPolicy"), "{stamped}");
        let pod = created.spec.unwrap().template.spec.unwrap();
        let text = |container: &k8s_openapi::api::core::v1::Container| {
            serde_json::to_value(container.resources.clone().unwrap_or_default()).unwrap()
        };
        let expected = json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "0"}});
        assert_eq!(text(&pod.init_containers.unwrap()[0]), expected);
        assert_eq!(text(&pod.containers[0]), expected);
        assert_eq!(text(&pod.containers[1]), json!({"requests": {"cpu": "2"}}));
        // A copy of the stored Job gets the same resources and annotation.
        let stored = fixture.cluster.kubectl(&["get", "job", "a", "-n", &ns, "-o", "json"]).await.unwrap();
        let mut copy: serde_json::Value = serde_json::from_str(&stored).unwrap();
        let annotations = copy["metadata"]["annotations"].clone();
        copy["metadata"] = json!({"name": "copy", "annotations": annotations});
        for field in ["selector", "manualSelector"] {
            copy["spec"].as_object_mut().unwrap().remove(field);
        }
        copy["spec"]["template"]["metadata"]["labels"] = json!({});
        copy.as_object_mut().unwrap().remove("status");
        let copy = fixture.create(&ns, &copy).await.unwrap();
        assert_eq!(annotation(&copy, "job-handler/stamped"), stamped);
    });
}

#[test]
fn a_policy_with_invalid_resources_is_refused() {
    scenario(|fixture| async move {
        for (resources, error) in [
            (json!({"limits": {"cpu": "much"}}), "limits.cpu"),
            (json!({"limits": {"cpuu": "1"}}), "resources are cpu, memory"),
            (json!({"limits": {"cpu": -1}}), "must not be negative"),
            (
                json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "2G"}}),
                "containerResources.requests must not be above",
            ),
        ] {
            let policy = json!({"apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
                "metadata": {"name": "wrong"}, "spec": {"stamp": {"containerResources": resources}}});
            let policy =
                serde_json::from_value::<job_handler_shared::policy::spec::JobPolicy>(policy).map_err(drop);
            let Ok(policy) = policy else { panic!("{resources}") };
            let api = fixture.policies("default");
            let (_, message) = refusal(api.create(&kube::api::PostParams::default(), &policy).await);
            assert!(message.contains(error), "{error} in {message}");
        }
    });
}
