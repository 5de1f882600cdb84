//! `/mutate` on the real apiserver: stamps, maxima, TTL relocation, updates, groups, opt-out.

use k8s_openapi::api::batch::v1::Job;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::fixtures::{annotation, job, scenario};

fn builds() -> Value {
    json!({
        "jobSelector": {"matchLabels": {"app": "build"}},
        "stamp": {
            "ttlSecondsAfterFinished": {"default": 86400, "max": 604800},
            "activeDeadlineSeconds": {"default": 1800, "max": 7200},
            "backoffLimit": {"default": 0, "max": 3},
            "labels": {"team": "build"},
        },
        "group": {"type": "Labels", "labelKeys": ["id"]},
        "results": {},
    })
}

fn ttl(job: &Job) -> Option<i32> {
    job.spec.as_ref().unwrap().ttl_seconds_after_finished
}

#[test]
fn unset_fields_get_the_defaults() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("stamp").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        let created = fixture.create(&ns, &job("a", &[("app", "build"), ("id", "7")], &[])).await.unwrap();
        let spec = created.spec.as_ref().unwrap();
        assert_eq!(
            (spec.active_deadline_seconds, spec.backoff_limit, ttl(&created)),
            (Some(1800), Some(0), Some(604_800))
        );
        assert_eq!(annotation(&created, "job-handler/ttl-seconds-after-finished"), "86400");
        let labels = created.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["team"].as_str(), labels["job-handler/group"].as_str()), ("build", "7"));
        let pods = spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        assert_eq!((pods["team"].as_str(), pods["job-handler/group"].as_str()), ("build", "7"));
        let stamped = annotation(&created, "job-handler/stamped");
        for word in [
            "backoffLimit",
            "activeDeadlineSeconds",
            "ttlSecondsAfterFinished",
            &format!("JobPolicy {}/builds", ns.name()),
        ] {
            assert!(stamped.contains(word), "{word} in {stamped}");
        }
        let other = fixture.create(&ns, &job("b", &[("app", "other")], &[])).await.unwrap();
        assert_eq!((other.spec.unwrap().active_deadline_seconds, other.metadata.annotations), (None, None));
    });
}

#[test]
fn values_above_the_maximum_are_lowered_with_a_warning() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("maxima").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        let mut big = job("big", &[("app", "build"), ("id", "7")], &[]);
        big["spec"]["backoffLimit"] = json!(50);
        big["spec"]["activeDeadlineSeconds"] = json!(999_999);
        big["spec"]["ttlSecondsAfterFinished"] = json!(9_999_999);
        let output = fixture
            .cluster
            .try_kubectl(&["create", "-n", &ns, "-f", "-"], big.to_string().as_bytes())
            .await
            .unwrap();
        assert!(output.success, "{}", output.stderr);
        for field in ["backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
            let warned =
                output.stderr.lines().any(|line| line.starts_with("Warning:") && line.contains(field));
            assert!(warned, "a warning about {field} in {}", output.stderr);
        }
        let created = fixture.jobs(&ns).get("big").await.unwrap();
        let spec = created.spec.as_ref().unwrap();
        assert_eq!((spec.backoff_limit, spec.active_deadline_seconds), (Some(3), Some(7200)));
        assert_eq!(annotation(&created, "job-handler/ttl-seconds-after-finished"), "604800");
        // The maxima apply to updates as well.
        let raise = json!({"spec": {"backoffLimit": 40}});
        let raised =
            fixture.jobs(&ns).patch("big", &PatchParams::default(), &Patch::Merge(&raise)).await.unwrap();
        assert_eq!(raised.spec.unwrap().backoff_limit, Some(3));
    });
}

#[test]
fn a_ttl_of_zero_starts_after_the_harvest() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("ttlzero").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        let mut quick =
            job("quick", &[("app", "build"), ("id", "7")], &[("run", "200ms"), ("log", "kept\n")]);
        quick["spec"]["ttlSecondsAfterFinished"] = json!(0);
        let created = fixture.create(&ns, &quick).await.unwrap();
        assert_eq!(
            (ttl(&created), annotation(&created, "job-handler/ttl-seconds-after-finished")),
            (Some(604_800), "0")
        );
        let result = fixture.wait_result(&ns, "quick").await;
        assert!(result.data.unwrap()["logs"].contains("kept"));
        fixture.wait_job_deleted(&ns, "quick").await;
    });
}

#[test]
fn the_same_manifest_applied_twice_stays_stamped() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("apply").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        for (name, own_ttl) in [("default-ttl", None), ("own-ttl", Some(3600))] {
            let mut manifest = job(name, &[("app", "build"), ("id", name)], &[("run", "60s")]);
            if let Some(seconds) = own_ttl {
                manifest["spec"]["ttlSecondsAfterFinished"] = json!(seconds);
            }
            for server_side in [false, true] {
                let mut args = vec!["apply", "-n", &ns, "-f", "-"];
                if server_side {
                    args.extend(["--server-side", "--force-conflicts"]);
                }
                for _ in 0..2 {
                    fixture.cluster.kubectl_with_input(&args, &manifest.to_string()).await.unwrap();
                    let job = fixture.jobs(&ns).get(name).await.unwrap();
                    assert_eq!(ttl(&job), Some(604_800), "{name} {server_side}");
                    let desired = own_ttl.unwrap_or(86_400).to_string();
                    assert_eq!(annotation(&job, "job-handler/ttl-seconds-after-finished"), desired);
                    let spec = job.spec.unwrap();
                    assert_eq!((spec.backoff_limit, spec.active_deadline_seconds), (Some(0), Some(1800)));
                }
            }
        }
    });
}

#[test]
fn server_side_apply_generate_name_and_dry_run_are_stamped_alike() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("ways").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        let mut generated = job("x", &[("app", "build"), ("id", "7")], &[]);
        generated["metadata"] = json!({"generateName": "gen-", "labels": generated["metadata"]["labels"]});
        let created = fixture.create(&ns, &generated).await.unwrap();
        assert_eq!(ttl(&created), Some(604_800));
        let applied = job("applied", &[("app", "build"), ("id", "7")], &[]);
        let created = fixture
            .jobs(&ns)
            .patch("applied", &PatchParams::apply("me"), &Patch::Apply(&applied))
            .await
            .unwrap();
        assert_eq!(ttl(&created), Some(604_800));
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let job = serde_json::from_value(job("dry-run", &[("app", "build"), ("id", "7")], &[])).unwrap();
        assert_eq!(ttl(&fixture.jobs(&ns).create(&dry_run, &job).await.unwrap()), Some(604_800));
        assert!(fixture.jobs(&ns).get_opt("dry-run").await.unwrap().is_none());
    });
}

#[test]
fn group_labels_are_shortened_or_omitted() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("groups").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        // A label value has at most 63 characters, but two joined values can be longer.
        fixture
            .apply_policy(
                &ns,
                "a-long",
                json!({"jobSelector": {"matchLabels": {"app": "long"}},
                "group": {"type": "Labels", "labelKeys": ["one", "two"]}}),
            )
            .await;
        let (one, two) = ("x".repeat(60), "y".repeat(60));
        let created = fixture
            .create(&ns, &job("long", &[("app", "long"), ("one", &one), ("two", &two)], &[]))
            .await
            .unwrap();
        let group = &created.metadata.labels.as_ref().unwrap()["job-handler/group"];
        assert!(group.len() <= 63 && group.starts_with("xxx"), "{group}");
        let created = fixture.create(&ns, &job("none", &[("app", "build")], &[])).await.unwrap();
        assert!(!created.metadata.labels.as_ref().unwrap().contains_key("job-handler/group"));
        let stamped = annotation(&created, "job-handler/stamped");
        assert!(stamped.contains("no label id"), "{stamped}");
        let forged = [("app", "build"), ("id", "7"), ("job-handler/group", "somebody-else")];
        let created = fixture.create(&ns, &job("forged", &forged, &[])).await.unwrap();
        assert_eq!(created.metadata.labels.unwrap()["job-handler/group"], "7");
    });
}

#[test]
fn forged_annotations_have_no_effect_and_opt_out_keeps_maxima() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("forged").await.unwrap();
        fixture.apply_policy(&ns, "builds", builds()).await;
        let mut forged =
            job("forged", &[("app", "build"), ("id", "7")], &[("run", "300ms"), ("log", "evidence\n")]);
        forged["metadata"]["annotations"] = json!({
            "job-handler/status": "completed", "job-handler/results": "elsewhere", "job-handler/stamped": "nothing",
            "job-handler/ttl-seconds-after-finished": "1", "job-handler/queued-at": "2020-01-01T00:00:00Z",
        });
        let created = fixture.create(&ns, &forged).await.unwrap();
        for key in ["status", "results", "queued-at"] {
            assert_eq!(annotation(&created, &format!("job-handler/{key}")), "", "{key}");
        }
        assert_eq!(annotation(&created, "job-handler/ttl-seconds-after-finished"), "86400");
        let result = fixture.wait_result(&ns, "forged").await;
        assert!(result.data.unwrap()["logs"].contains("evidence"));

        let labels = [("app", "build"), ("id", "8"), ("job-handler/enabled", "false")];
        let mut out = job("out", &labels, &[]);
        out["spec"]["activeDeadlineSeconds"] = json!(999_999);
        let created = fixture.create(&ns, &out).await.unwrap();
        assert_eq!(ttl(&created), None, "no default, no harvest");
        assert_eq!(created.spec.as_ref().unwrap().active_deadline_seconds, Some(7200), "the maximum applies");
        assert_eq!(created.metadata.labels.unwrap()["job-handler/group"], "8", "the group too");
    });
}

#[test]
fn a_backoff_limit_of_six_counts_as_unset_unless_the_author_keeps_it() {
    scenario(|fixture| async move {
        let ns = fixture.cluster.namespace("six").await.unwrap();
        let spec = json!({"stamp": {"backoffLimit": {"default": 1, "max": 9}}});
        fixture.apply_policy(&ns, "retries", spec).await;
        let mut six = job("six", &[], &[]);
        six["spec"]["backoffLimit"] = json!(6);
        let created = fixture.create(&ns, &six).await.unwrap();
        assert_eq!(created.spec.unwrap().backoff_limit, Some(1));
        six["metadata"] = json!({"name": "kept", "annotations": {"job-handler/keep": "backoffLimit"}});
        let created = fixture.create(&ns, &six).await.unwrap();
        assert_eq!(created.spec.unwrap().backoff_limit, Some(6));
        let mut indexed = job("indexed", &[], &[]);
        indexed["spec"]["completionMode"] = json!("Indexed");
        indexed["spec"]["completions"] = json!(2);
        indexed["spec"]["backoffLimitPerIndex"] = json!(1);
        let created = fixture.create(&ns, &indexed).await.unwrap();
        assert_eq!(
            created.spec.unwrap().backoff_limit,
            Some(i32::MAX),
            "with backoffLimitPerIndex it is neither stamped nor lowered"
        );
    });
}
