//! Policies: what the apiserver accepts and refuses, live reload, `Ready`, columns, the default policy, the samples.

use job_handler_shared::policy::spec::{ClusterJobPolicy, JobPolicy};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::fixtures::{Fixture, annotation, job, refusal, scenario};

async fn check(fixture: &Fixture, kind: &str, spec: &Value) -> Result<(), String> {
    let parameters = PatchParams { dry_run: true, ..PatchParams::apply("scenario").validation_strict() };
    let policy = json!({
        "apiVersion": "job-handler.io/v1alpha1", "kind": kind, "metadata": {"name": "p"}, "spec": spec,
    });
    let result = if kind == "JobPolicy" {
        let api: Api<JobPolicy> = Api::namespaced(fixture.client(), "default");
        api.patch("p", &parameters, &Patch::Apply(&policy)).await.map(drop)
    } else {
        let api: Api<ClusterJobPolicy> = Api::all(fixture.client());
        api.patch("p", &parameters, &Patch::Apply(&policy)).await.map(drop)
    };
    match result {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_policy_of_the_readme_is_accepted() {
    scenario(|fixture| async move {
        let spec = json!({
            "jobSelector": {"matchLabels": {"app": "image-build"}},
            "mode": "Enforce",
            "stamp": {
                "ttlSecondsAfterFinished": {"default": 86400, "max": 604800},
                "activeDeadlineSeconds": {"default": 1800, "max": 7200},
                "backoffLimit": {"default": 0, "max": 3},
                "labels": {"team": "build"},
                "containerResources": {"limits": {"cpu": "2", "memory": "4Gi"}},
            },
            "group": {"type": "Labels", "labelKeys": ["build.notifi.network/third-party-id", "build.notifi.network/parser-id"]},
            "limits": [
                {"name": "concurrent-builds", "maxActiveJobs": 10, "scope": "Namespace", "whenFull": "Reject"},
                {"name": "one-per-parser", "maxActiveJobs": 1, "scope": "Group", "whenFull": "Reject"},
            ],
            "failureBackoff": {"initialSeconds": 300, "multiplier": 2, "maxSeconds": 3600, "action": "Reject"},
            "results": {
                "storageType": "ConfigMap", "ttlSeconds": 604800, "maxPerGroup": 20, "maxBytesPerNamespace": "64Mi",
                "harvestDeadlineSeconds": 604800,
                "logs": {"mode": "HeadAndTail", "maxBytesPerContainer": "256Ki", "maxBytesPerJob": "4Mi"},
            },
            "cleanup": {
                "succeededPolicy": "AfterHarvest", "failedPolicy": "Never",
                "keep": {"newest": 1, "newestSucceeded": 0}, "propagationPolicy": "Foreground",
            },
            "cloudEventSinks": [{"name": "ci"}],
        });
        check(fixture, "JobPolicy", &spec).await.unwrap();
        let mut wide = spec;
        wide["namespaceSelector"] = json!({"matchExpressions": [{"key": "team", "operator": "Exists"}]});
        wide["limits"][0]["scope"] = json!("Cluster");
        check(fixture, "ClusterJobPolicy", &wide).await.unwrap();
    });
}

#[test]
fn invalid_policies_are_refused_with_the_field() {
    scenario(|fixture| async move {
        let limit = |more: Value| {
            let mut limit = json!({"name": "x", "maxActiveJobs": 1});
            limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"limits": [limit]})
        };
        let range = |field: &str, value: Value| json!({"stamp": {field: value}});
        let long_key = format!("{}/x", "p".repeat(254));
        let table = [
            (limit(json!({"maxActiveJobs": -1})), "spec.limits[0].maxActiveJobs"),
            (limit(json!({"maxActiveJobs": "ten"})), "maxActiveJobs"),
            (limit(json!({"name": "Not A Name"})), "spec.limits[0].name"),
            (limit(json!({"scope": "Planet"})), "spec.limits[0].scope"),
            (limit(json!({"scope": "Cluster"})), "limits[].scope"),
            (limit(json!({"whenFull": "Explode"})), "spec.limits[0].whenFull"),
            (limit(json!({"maxJobs": 3})), "maxJobs"),
            (
                json!({"limits": [{"name": "a", "maxActiveJobs": 1}, {"name": "a", "maxActiveJobs": 2}]}),
                "limits",
            ),
            (json!({"limts": []}), "limts"),
            (json!({"mode": "Maybe"}), "spec.mode"),
            (json!({"jobSelector": {"matchLabels": {"no spaces": "x"}}}), "spec.jobSelector.matchLabels"),
            (
                json!({"jobSelector": {"matchLabels": {"a": "not a value!"}}}),
                "spec.jobSelector.matchLabels.a",
            ),
            (
                json!({"jobSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
                "spec.jobSelector.matchExpressions[0].operator",
            ),
            (
                json!({"jobSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                "spec.jobSelector.matchExpressions[0]",
            ),
            (
                range("ttlSecondsAfterFinished", json!({"default": -1})),
                "spec.stamp.ttlSecondsAfterFinished.default",
            ),
            (range("activeDeadlineSeconds", json!({"max": 0})), "spec.stamp.activeDeadlineSeconds.max"),
            (range("backoffLimit", json!({"default": 4, "max": 3})), "spec.stamp.backoffLimit"),
            (range("labels", json!({"job-handler/group": "mine"})), "stamp.labels"),
            (json!({"group": {"type": "Labels"}}), "group.labelKeys"),
            (json!({"group": {"type": "Owner", "labelKeys": ["a"]}}), "group.labelKeys"),
            (json!({"failureBackoff": {"initialSeconds": 10, "maxSeconds": 5}}), "failureBackoff.maxSeconds"),
            (
                json!({"failureBackoff": {"initialSeconds": 0, "maxSeconds": 5}}),
                "spec.failureBackoff.initialSeconds",
            ),
            (json!({"results": {"maxBytesPerNamespace": "64 megs"}}), "spec.results.maxBytesPerNamespace"),
            (
                json!({"results": {"logs": {"maxBytesPerContainer": "1Gi"}}}),
                "spec.results.logs.maxBytesPerContainer: Invalid value: \"1Gi\": must be at most 16Mi",
            ),
            (
                json!({"results": {"logs": {"maxBytesPerJob": 67_108_865}}}),
                "spec.results.logs.maxBytesPerJob: Invalid value: 67108865: must be at most 64Mi",
            ),
            (
                json!({"jobSelector": {"matchLabels": {"good": "x", "a b": "y"}}}),
                "\"a b\": not a valid label key",
            ),
            (json!({"results": {"harvestDeadlineSeconds": 1}}), "spec.results.harvestDeadlineSeconds"),
            (json!({"results": {"storageType": "Tape"}}), "spec.results.storageType"),
            (json!({"cleanup": {"keep": {"newest": 0}}}), "spec.cleanup.keep.newest"),
            (json!({"cleanup": {"failedPolicy": "Soon"}}), "spec.cleanup.failedPolicy"),
            (json!({"namespaceSelector": {}}), "namespaceSelector"),
            (json!({"jobSelector": {"matchLabels": {long_key.as_str(): "y"}}}), "not a valid label key"),
            (
                json!({"jobSelector": {"matchExpressions": [{"key": long_key, "operator": "Exists"}]}}),
                "spec.jobSelector.matchExpressions[0].key",
            ),
            (json!({"group": {"type": "Labels", "labelKeys": [long_key]}}), "spec.group.labelKeys[0]"),
            (range("labels", json!({long_key.as_str(): "y"})), "not a valid label key"),
        ];
        for (spec, field) in table {
            let message = check(fixture, "JobPolicy", &spec).await.expect_err(&spec.to_string());
            assert!(message.contains(field), "{spec}: expected {field} in: {message}");
        }
        let bad = json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}});
        let message = check(fixture, "ClusterJobPolicy", &bad).await.unwrap_err();
        assert!(message.contains("spec.namespaceSelector.matchExpressions[0]"), "{message}");
    });
}

/// Each of these stamps, on a Job that states nothing, makes the apiserver reject the Job.
#[test]
fn stamps_that_would_make_every_job_invalid_are_refused() {
    scenario(|fixture| async move {
        let resources = |limits: Value, requests: Value| json!({"stamp": {"containerResources": {"limits": limits, "requests": requests}}});
        let labels = |key: &str| json!({"stamp": {"labels": {key: "x"}}});
        let (controller, equal) = ("belong to the Job controller", "need an equal limit");
        let gpu = "example.com/gpu";
        let table = [
            (labels("job-name"), controller),
            (labels("controller-uid"), controller),
            (labels("batch.kubernetes.io/job-name"), controller),
            (labels("batch.kubernetes.io/job-completion-index"), controller),
            (resources(json!({}), json!({gpu: 1})), equal),
            (resources(json!({gpu: 2}), json!({gpu: 1})), equal),
            (resources(json!({"memory": "1Gi"}), json!({"hugepages-2Mi": "4Mi"})), equal),
            (resources(json!({"hugepages-2Mi": "4Mi"}), json!({})), "need cpu or memory"),
            (resources(json!({"memory": "1Gi", "hugepages-2Mi": "3Mi"}), json!({})), "multiples of SIZE"),
            (resources(json!({"memory": "1Gi", "hugepages-none": "2Mi"}), json!({})), "multiples of SIZE"),
            (resources(json!({gpu: "500m"}), json!({})), "whole numbers"),
            (resources(json!({"a b/c": 1}), json!({})), "resources are cpu"),
            (resources(json!({"requests.example.com/gpu": 1}), json!({})), "resources are cpu"),
            (resources(json!({"gpu": 1}), json!({})), "resources are cpu"),
        ];
        for (spec, message) in table {
            let refused = check(fixture, "JobPolicy", &spec).await.expect_err(&spec.to_string());
            assert!(refused.contains(message), "{spec}: expected {message} in: {refused}");
        }
        // What the apiserver accepts in a Job is accepted here.
        let ns = fixture.cluster.namespace("stamps").await.unwrap();
        let valid = [
            resources(json!({gpu: 1}), json!({})),
            resources(json!({gpu: "1k", "cpu": "500m"}), json!({gpu: 1000, "memory": "1Gi"})),
            resources(json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"}), json!({"hugepages-2Mi": "4096Ki"})),
            resources(json!({"hugepages-1Gi": "2Gi"}), json!({"cpu": 1})),
            resources(json!({"ephemeral-storage": "1Gi"}), json!({"cpu": "100m"})),
            json!({"stamp": {"labels": {"team": "x", "example.com/job-name": "y"}}}),
        ];
        for spec in valid {
            fixture.apply_policy(&ns, "stamps", spec.clone()).await;
            let dry_run = kube::api::PostParams { dry_run: true, ..Default::default() };
            let plain = serde_json::from_value(job("plain", &[], &[])).unwrap();
            let created = fixture.jobs(&ns).create(&dry_run, &plain).await;
            let stamped = created.unwrap_or_else(|error| panic!("{spec}: {error}"));
            assert!(!annotation(&stamped, "job-handler/stamped").is_empty(), "{spec}");
        }
    });
}

#[test]
fn a_policy_change_is_in_force_once_ready_and_shown_in_the_columns() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("reload").await.unwrap();
        let deadline = |seconds: u32| {
            json!({"stamp": {"activeDeadlineSeconds": {"default": seconds}},
            "limits": [{"name": "few", "maxActiveJobs": 7}]})
        };
        for (name, seconds) in [("a", 100), ("b", 200)] {
            fixture.apply_policy(&ns, "reload", deadline(seconds)).await;
            let created = fixture.create(&ns, &job(name, &[], &[("run", "30s")])).await.unwrap();
            assert_eq!(created.spec.unwrap().active_deadline_seconds, Some(i64::from(seconds)));
        }
        let table = fixture
            .wait("the column to count both", || async {
                let table = fixture.cluster.kubectl(&["get", "jobpolicy", "-n", &ns]).await.unwrap();
                if table.contains("2/7") { Ok(table) } else { Err(table) }
            })
            .await;
        for text in ["NAME", "MODE", "LIMITS", "READY", "reload", "Enforce", "True"] {
            assert!(table.contains(text), "{text} in {table}");
        }
        fixture.policies(&ns).delete("reload", &Default::default()).await.unwrap();
        fixture
            .wait("Jobs to be created without stamps", || async {
                let dry_run = kube::api::PostParams { dry_run: true, ..Default::default() };
                let job = serde_json::from_value(job("c", &[], &[])).unwrap();
                let created = fixture.jobs(&ns).create(&dry_run, &job).await.unwrap();
                let deadline = created.spec.unwrap().active_deadline_seconds;
                if deadline.is_none() { Ok(()) } else { Err(format!("{deadline:?}")) }
            })
            .await;
    });
}

#[test]
fn namespace_selectors_follow_the_labels_of_namespaces() {
    scenario(|fixture| async move {
        let (inside, outside) = (
            fixture.cluster.namespace("inside").await.unwrap(),
            fixture.cluster.namespace("outside").await.unwrap(),
        );
        let label = format!("team={}", inside.name());
        fixture.cluster.kubectl(&["label", "namespace", &inside, &label]).await.unwrap();
        let name = format!("wide-{}", inside.name());
        let policy = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name},
            "spec": {"namespaceSelector": {"matchLabels": {"team": inside.name()}},
                "stamp": {"activeDeadlineSeconds": {"default": 77}}},
        });
        let api: Api<ClusterJobPolicy> = Api::all(fixture.client());
        api.patch(&name, &PatchParams::apply("scenario"), &Patch::Apply(&policy)).await.unwrap();
        let ready = format!("clusterjobpolicy/{name}");
        fixture.cluster.kubectl(&["wait", &ready, "--for=condition=Ready", "--timeout=30s"]).await.unwrap();
        let created = fixture.create(&inside, &job("a", &[], &[])).await.unwrap();
        assert_eq!(created.spec.as_ref().unwrap().active_deadline_seconds, Some(77));
        assert!(annotation(&created, "job-handler/stamped").contains(&format!("ClusterJobPolicy {name}")));
        let created = fixture.create(&outside, &job("a", &[], &[])).await.unwrap();
        assert_eq!(created.spec.as_ref().unwrap().active_deadline_seconds, None);
        api.delete(&name, &Default::default()).await.unwrap();
    });
}

#[test]
fn the_default_policy_harvests_jobs_that_opt_in() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("optin").await.unwrap();
        let logs = [("run", "200ms"), ("log", "done\n")];
        fixture.create(&ns, &job("in", &[("job-handler/enabled", "true")], &logs)).await.unwrap();
        let out = fixture.create(&ns, &job("out", &[], &logs)).await.unwrap();
        assert!(
            annotation(&out, "job-handler/stamped").is_empty(),
            "a Job outside every policy was changed: {out:?}"
        );
        let failing = [("run", "200ms"), ("exit-code", "1")];
        let mut broken = job("broken", &[("job-handler/enabled", "true")], &failing);
        broken["spec"]["backoffLimit"] = json!(0);
        fixture.create(&ns, &broken).await.unwrap();
        let result = fixture.wait_result(&ns, "in").await;
        assert_eq!(result.data.unwrap()["status"], "completed");
        fixture.wait_job_deleted(&ns, "in").await;
        fixture.wait_result(&ns, "broken").await;
        let failed = fixture
            .wait("the failed Job to be annotated", || async {
                let job = fixture.jobs(&ns).get("broken").await.unwrap();
                if annotation(&job, "job-handler/status") == "failed" {
                    Ok(job)
                } else {
                    Err(format!("{job:?}"))
                }
            })
            .await;
        assert_eq!(
            failed.spec.unwrap().ttl_seconds_after_finished,
            None,
            "failedPolicy Never removes the TTL"
        );
        assert!(fixture.jobs(&ns).get("out").await.is_ok());
        assert!(fixture.config_maps(&ns).get_opt("out-results").await.unwrap().is_none());
    });
}

#[test]
fn editors_may_not_write_policies() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("roles").await.unwrap();
        for (role, verb, allowed) in [
            ("view", "get", true),
            ("view", "create", false),
            ("edit", "get", true),
            ("edit", "create", false),
            ("admin", "create", true),
        ] {
            let user = format!("{role}-{verb}");
            let binding = format!("{user}-binding");
            let role_flag = format!("--clusterrole={role}");
            let user_flag = format!("--user={user}");
            fixture
                .cluster
                .kubectl(&["create", "rolebinding", &binding, &role_flag, &user_flag, "-n", &ns])
                .await
                .unwrap();
            let answer = fixture
                .wait(&format!("{role} to be aggregated"), || async {
                    let output = fixture
                        .cluster
                        .try_kubectl(
                            &["auth", "can-i", verb, "jobpolicies.job-handler.io", "-n", &ns, "--as", &user],
                            b"",
                        )
                        .await
                        .unwrap();
                    if (output.stdout.trim() == "yes") == allowed {
                        Ok(output.stdout)
                    } else {
                        Err(output.stdout)
                    }
                })
                .await;
            assert_eq!(answer.trim() == "yes", allowed, "{role} {verb}");
        }
    });
}

#[test]
fn namespaced_and_cluster_policies_combine() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("combine").await.unwrap();
        let name = format!("combine-{}", ns.name());
        let wide = json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy", "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name()}},
                "stamp": {"activeDeadlineSeconds": {"default": 10, "max": 60}, "backoffLimit": {"default": 2, "max": 9}},
                "limits": [{"name": "cluster-wide", "maxActiveJobs": 2, "scope": "Cluster"}],
                "results": {}, "cleanup": {"succeededPolicy": "AfterHarvest"},
            },
        });
        let api: Api<ClusterJobPolicy> = Api::all(fixture.client());
        api.patch(&name, &PatchParams::apply("scenario"), &Patch::Apply(&wide)).await.unwrap();
        let own = json!({
            "stamp": {"activeDeadlineSeconds": {"default": 600, "max": 3600}, "backoffLimit": {"max": 1}},
            "limits": [{"name": "own", "maxActiveJobs": 3}],
            "results": {}, "cleanup": {"succeededPolicy": "AfterTTL"},
        });
        fixture.apply_policy(&ns, "own", own).await;
        let ready = format!("clusterjobpolicy/{name}");
        fixture.cluster.kubectl(&["wait", &ready, "--for=condition=Ready", "--timeout=30s"]).await.unwrap();

        let created = fixture.create(&ns, &job("a", &[], &[("run", "300ms")])).await.unwrap();
        let spec = created.spec.unwrap();
        assert_eq!(spec.active_deadline_seconds, Some(60), "the namespace's default, the cluster's maximum");
        assert_eq!(spec.backoff_limit, Some(1), "the cluster's default, the namespace's maximum");
        fixture.wait_result(&ns, "a").await;
        for name in ["b", "c"] {
            fixture.create(&ns, &job(name, &[], &[("run", "60s")])).await.unwrap();
        }
        let (code, message) = refusal(fixture.create(&ns, &job("d", &[], &[])).await);
        assert_eq!(code, 403);
        assert!(message.contains("cluster-wide"), "the stricter of the two limits applies: {message}");
        assert!(fixture.jobs(&ns).get("a").await.is_ok(), "AfterTTL keeps longer than AfterHarvest");
        api.delete(&name, &Default::default()).await.unwrap();
    });
}

#[test]
fn a_policy_in_warn_mode_changes_refuses_and_deletes_nothing() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("warn").await.unwrap();
        let spec = json!({
            "mode": "Warn", "stamp": {"activeDeadlineSeconds": {"default": 60}, "backoffLimit": {"max": 1}},
            "limits": [{"name": "none", "maxActiveJobs": 0}],
            "results": {}, "cleanup": {"succeededPolicy": "AfterHarvest", "failedPolicy": "AfterHarvest"},
        });
        fixture.apply_policy(&ns, "warn", spec).await;
        let mut warned = job("warned", &[], &[("run", "200ms")]);
        warned["spec"]["backoffLimit"] = json!(5);
        let created = fixture.create(&ns, &warned).await.unwrap();
        let spec = created.spec.unwrap();
        assert_eq!((spec.active_deadline_seconds, spec.backoff_limit), (None, Some(5)));
        // An enforced policy deletes its Job, so the sink has reconciled the Jobs of both.
        fixture
            .create(&ns, &job("enforced", &[("job-handler/enabled", "true")], &[("run", "200ms")]))
            .await
            .unwrap();
        fixture.wait_job_deleted(&ns, "enforced").await;
        assert!(fixture.jobs(&ns).get("warned").await.is_ok());
        assert!(fixture.config_maps(&ns).get_opt("warned-results").await.unwrap().is_none());
    });
}

#[test]
fn the_status_lists_policy_fields_without_effect() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("fully-enforced").await.unwrap();
        fixture.apply_policy(&ns, "supported", json!({"stamp": {"backoffLimit": {"max": 1}}})).await;
        let spec = json!({"cloudEventSinks": [{"name": "ci"}], "results": {"storageType": "Secret"}});
        fixture.apply_policy(&ns, "unsupported", spec).await;
        for (name, status, fields) in [
            ("supported", "True", vec![]),
            ("unsupported", "False", vec!["storageType Secret", "cloudEventSinks \"ci\""]),
        ] {
            let policy = fixture.policies(&ns).get(name).await.unwrap();
            let conditions = policy.status.unwrap().conditions;
            let condition = conditions.iter().find(|c| c.type_ == "FullyEnforced").unwrap();
            assert_eq!(condition.status, status, "{condition:?}");
            assert!(fields.iter().all(|field| condition.message.contains(field)), "{condition:?}");
        }
    });
}

#[test]
fn the_samples_apply() {
    scenario(|fixture| async move {
        let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/samples");
        let output = fixture.cluster.kubectl(&["apply", "--server-side", "-f", samples]).await.unwrap();
        for policy in ["jobpolicy.job-handler.io/builds", "job-handler.io/"] {
            assert!(output.contains(policy), "{output}");
        }
        let wait = ["wait", "jobpolicy", "--all", "-n", "ci", "--for=condition=Ready", "--timeout=30s"];
        fixture.cluster.kubectl(&wait).await.unwrap();
        fixture.cluster.kubectl(&["delete", "-f", samples, "--wait=false"]).await.unwrap();
    });
}
