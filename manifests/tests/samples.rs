//! The samples, read into the types of the code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod files;

use std::{fs, path::Path};

use files::{folder, object, parse, typed};
use job_handler_shared::policy::{
    cleanup::CleanupPolicy,
    limit::{Scope, WhenFull},
    results::LogsMode,
    spec::{ClusterJobPolicy, GroupBy, JobPolicy, Mode},
    stamp::Range,
};
use k8s_openapi::api::core::v1::Namespace;

fn range(default: i64, max: i64) -> Option<Range> {
    Some(Range { default: Some(default), max: Some(max) })
}

#[test]
fn builds_has_the_numbers_of_the_image_build_case() {
    let _: Namespace = object("samples/builds.yaml", "Namespace", "ci");
    let policy: JobPolicy = object("samples/builds.yaml", "JobPolicy", "builds");
    assert_eq!(policy.metadata.namespace.as_deref(), Some("ci"));
    let spec = policy.spec.policy;
    assert_eq!(spec.mode, Mode::Enforce);
    assert_eq!(spec.job_selector.unwrap().match_labels.unwrap()["app"], "image-build");

    let stamp = spec.stamp.unwrap();
    assert_eq!(stamp.ttl_seconds_after_finished, range(86_400, 604_800));
    assert_eq!(stamp.active_deadline_seconds, range(1_800, 7_200));
    assert_eq!(stamp.backoff_limit, range(0, 3));

    let group = spec.group.unwrap();
    assert_eq!(group.by, GroupBy::Labels);
    assert_eq!(group.label_keys, ["build.notifi.network/third-party-id", "build.notifi.network/parser-id"]);

    let [concurrent, one] = spec.limits.try_into().expect("two limits");
    assert_eq!((concurrent.name.as_str(), concurrent.max_active_jobs), ("concurrent-builds", 10));
    assert_eq!((concurrent.scope, concurrent.when_full), (Scope::Namespace, WhenFull::Reject));
    assert_eq!((one.name.as_str(), one.max_active_jobs), ("one-per-parser", 1));
    assert_eq!((one.scope, one.when_full), (Scope::Group, WhenFull::Reject));

    let backoff = spec.failure_backoff.unwrap();
    assert_eq!((backoff.initial_seconds, backoff.multiplier, backoff.max_seconds), (300, 2, 3_600));
    assert_eq!(backoff.action, WhenFull::Reject);

    let results = spec.results.unwrap();
    assert_eq!((results.ttl_seconds, results.max_per_group), (604_800, 20));
    assert_eq!(results.logs.mode, LogsMode::HeadAndTail);
    let cleanup = spec.cleanup.unwrap();
    assert_eq!(cleanup.failed_policy, CleanupPolicy::Never);
    assert_eq!(cleanup.keep.unwrap().newest, 1);
}

#[test]
fn cron_jobs_are_grouped_by_their_owner() {
    let policy: JobPolicy = object("samples/cronjobs.yaml", "JobPolicy", "cronjobs");
    let spec = policy.spec.policy;
    assert_eq!(spec.group.unwrap().by, GroupBy::Owner);
    assert_eq!((spec.limits[0].scope, spec.limits[0].when_full), (Scope::Group, WhenFull::Queue));
}

#[test]
fn gitops_hooks_are_grouped_by_their_application() {
    let policy: ClusterJobPolicy = object("samples/gitops-hooks.yaml", "ClusterJobPolicy", "gitops-hooks");
    assert!(policy.spec.namespace_selector.is_some());
    let spec = policy.spec.policy;
    assert_eq!(spec.group.unwrap().label_keys, ["argocd.argoproj.io/instance"]);
    assert_eq!(spec.cleanup.unwrap().keep.unwrap().newest, 1);
}

/// The policies in the YAML blocks of READMEs have only fields that exist.
#[test]
fn policies_in_readmes_can_be_read() {
    let mut policies = 0;
    for readme in ["../README.md", "README.md"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(readme)).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            for document in parse(block.split("```").next().unwrap(), readme) {
                match document["kind"].as_str() {
                    Some("JobPolicy") => drop(typed::<JobPolicy>(&document, readme)),
                    Some("ClusterJobPolicy") => drop(typed::<ClusterJobPolicy>(&document, readme)),
                    _ => continue,
                }
                policies += 1;
            }
        }
    }
    assert!(policies > 0, "no policies were found");
}

/// Each sample is read by a test above.
#[test]
fn every_sample_is_read_here() {
    let mut files: Vec<String> = folder("samples").into_iter().map(|(path, _)| path).collect();
    files.dedup();
    assert_eq!(files, ["samples/builds.yaml", "samples/cronjobs.yaml", "samples/gitops-hooks.yaml"]);
}
