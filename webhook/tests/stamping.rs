//! What becomes of a Job, as the apiserver would store it.

mod common;

use common::{Webhook, annotation, builds, cluster_policy, job, policy, with};
use rstest::rstest;
use serde_json::{Value, json};

const STAMPED: &str = "job-handler/stamped";
const TTL: &str = "job-handler/ttl-seconds-after-finished";
const GROUP: &str = "job-handler/group";

#[test]
fn absent_fields_get_the_defaults() {
    let before = job(json!({"app": "build", "id": "7"}), json!({}));
    let (after, warnings) = Webhook::builds().create(&before);
    assert!(warnings.is_empty(), "{warnings:?}");
    insta::assert_yaml_snapshot!(after);
}

#[test]
fn operations_change_single_fields_and_escape_keys() {
    let before = job(json!({"app": "build", "id": "7"}), json!({}));
    let (ops, _) = Webhook::builds().create_ops(&before);
    insta::assert_json_snapshot!(ops);
}

#[test]
fn jobs_outside_every_enforced_policy_are_not_changed() {
    let mut forged = job(json!({"app": "other", GROUP: "x"}), json!({"ttlSecondsAfterFinished": 0}));
    forged["metadata"]["annotations"] = json!({STAMPED: "nothing to set: x", TTL: "7"});
    let mut warn = builds();
    warn["mode"] = json!("Warn");
    warn.as_object_mut().unwrap().remove("jobSelector");
    for webhook in [Webhook::builds(), Webhook::new([]), Webhook::new([policy("warn", warn)])] {
        assert_eq!(webhook.create(&forged), (forged.clone(), vec![]));
    }
}

#[test]
fn policies_with_only_reject_limits_change_no_job_but_remove_forged_annotations() {
    let limits = |when_full: &str| {
        let limits = json!({"limits": [{"name": "few", "maxActiveJobs": 3, "whenFull": when_full}]});
        Webhook::new([policy("few", limits)])
    };
    let plain = job(json!({"app": "other"}), json!({"ttlSecondsAfterFinished": 0}));
    assert_eq!(limits("Reject").create(&plain), (plain.clone(), vec![]));
    let mut forged = plain.clone();
    forged["metadata"]["annotations"] = json!({STAMPED: "nothing to set: x", TTL: "7", "job-handler/results": "r",
        "job-handler/status": "completed", "job-handler/queued-at": "2026-11-21T00:00:00Z", "note": "mine"});
    forged["metadata"]["labels"][GROUP] = json!("x");
    let (after, _) = limits("Reject").create(&forged);
    let mut expected = plain.clone();
    expected["metadata"]["annotations"] = json!({"note": "mine"});
    assert_eq!(after, expected);
    // The annotation also says that there was nothing to set.
    let stamps = json!({"stamp": {"activeDeadlineSeconds": {"max": 60}}});
    for webhook in [limits("Queue"), Webhook::new([policy("stamps", stamps)])] {
        let (after, _) = webhook.create(&job(json!({"app": "other"}), json!({"activeDeadlineSeconds": 30})));
        assert_ne!(annotation(&after, STAMPED), "", "{after}");
    }
}

/// With these annotations the sink would start the Job outside every policy, although its author suspended it.
#[test]
fn a_copy_of_a_queued_job_outside_every_policy_only_loses_the_queue_annotations() {
    let (queued, _) = queue().create(&job(json!({"app": "other"}), json!({})));
    assert_eq!(queued["spec"]["suspend"], true);
    for stamped in [queued["metadata"]["annotations"][STAMPED].as_str(), None] {
        let mut copy = queued.clone();
        match stamped {
            Some(text) => copy["metadata"]["annotations"][STAMPED] = json!(format!("kept: x; {text}")),
            None => drop(copy["metadata"]["annotations"].as_object_mut().unwrap().remove(STAMPED)),
        }
        let (after, warnings) = Webhook::builds().create(&copy);
        let mut expected = copy;
        let annotations = expected["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove("job-handler/queued-at");
        if stamped.is_some() {
            annotations.insert(STAMPED.into(), json!("kept: x"));
        }
        assert_eq!((after, warnings), (expected, vec![]));
    }
}

#[test]
fn values_over_the_maximum_are_clamped_with_a_warning() {
    let spec =
        json!({"backoffLimit": 50, "activeDeadlineSeconds": 9000, "ttlSecondsAfterFinished": 9_999_999});
    let (after, warnings) = Webhook::builds().create(&job(json!({"app": "build", "id": "7"}), spec));
    insta::assert_yaml_snapshot!(warnings);
    assert_eq!(
        (&after["spec"]["backoffLimit"], &after["spec"]["activeDeadlineSeconds"]),
        (&json!(3), &json!(7200))
    );
    assert_eq!(annotation(&after, TTL), "604800");
    insta::assert_snapshot!(annotation(&after, STAMPED));
}

/// (TTL stated, default, max, harvest) -> (TTL in spec, TTL in the annotation).
#[rstest]
#[case(None, Some(60), None, true, Some(604_800), "60")]
#[case(Some(0), Some(60), None, true, Some(604_800), "0")]
#[case(Some(9_000_000), Some(60), None, true, Some(9_000_000), "9000000")]
#[case(Some(9_000_000), Some(60), Some(70), true, Some(604_800), "70")]
#[case(Some(604_800), None, None, true, Some(604_800), "604800")]
#[case(None, None, None, true, None, "")]
#[case(None, None, Some(70), true, None, "")]
#[case(Some(-1), Some(60), None, true, Some(-1), "")]
#[case(None, Some(60), None, false, Some(60), "")]
#[case(Some(0), Some(60), Some(70), false, Some(0), "")]
#[case(Some(80), None, Some(70), false, Some(70), "")]
#[case(None, None, None, false, None, "")]
fn ttl_is_defaulted_clamped_and_deferred_until_the_harvest(
    #[case] stated: Option<i64>,
    #[case] default: Option<i64>,
    #[case] max: Option<i64>,
    #[case] harvest: bool,
    #[case] spec: Option<i64>,
    #[case] desired: &str,
) {
    let mut rules = json!({"stamp": {"ttlSecondsAfterFinished": {"default": default, "max": max}}});
    if harvest {
        rules["results"] = json!({});
    }
    let stated = stated.map_or(json!({}), |ttl| json!({"ttlSecondsAfterFinished": ttl}));
    let (after, _) = Webhook::new([policy("p", rules)]).create(&job(json!({}), stated));
    assert_eq!(after["spec"]["ttlSecondsAfterFinished"].as_i64(), spec);
    assert_eq!(annotation(&after, TTL), desired);
}

/// (deadline stated, default, max) -> deadline.
#[rstest]
#[case(None, Some(60), Some(70), Some(60))]
#[case(Some(65), Some(60), Some(70), Some(65))]
#[case(Some(80), Some(60), Some(70), Some(70))]
#[case(None, None, Some(70), Some(70))]
#[case(None, None, None, None)]
#[case(Some(80), None, None, Some(80))]
fn deadline_is_defaulted_and_clamped(
    #[case] stated: Option<i64>,
    #[case] default: Option<i64>,
    #[case] max: Option<i64>,
    #[case] expected: Option<i64>,
) {
    let rules = json!({"stamp": {"activeDeadlineSeconds": {"default": default, "max": max}}});
    let stated = stated.map_or(json!({}), |deadline| json!({"activeDeadlineSeconds": deadline}));
    let (after, _) = Webhook::new([policy("p", rules)]).create(&job(json!({}), stated));
    assert_eq!(after["spec"]["activeDeadlineSeconds"].as_i64(), expected);
}

/// (backoffLimit as it arrives, keep annotation, backoffLimitPerIndex, default, max) -> (backoffLimit, warnings).
#[rstest]
#[case(6, false, false, Some(0), Some(3), 0, 0)]
#[case(6, false, false, None, Some(3), 3, 0)]
#[case(6, false, false, None, None, 6, 0)]
#[case(6, true, false, Some(0), None, 6, 0)]
#[case(6, true, false, Some(0), Some(3), 3, 1)]
#[case(7, false, false, Some(0), Some(3), 3, 1)]
#[case(2, false, false, Some(0), Some(3), 2, 0)]
#[case(i32::MAX, false, true, Some(0), Some(3), i32::MAX, 0)]
#[case(i32::MAX, false, false, Some(0), Some(3), 3, 1)]
#[case(6, false, true, Some(0), None, 6, 0)]
#[case(9, false, true, Some(0), Some(3), 3, 1)]
fn backoff_limit_is_defaulted_and_clamped(
    #[case] arrives: i32,
    #[case] keep: bool,
    #[case] per_index: bool,
    #[case] default: Option<i64>,
    #[case] max: Option<i64>,
    #[case] expected: i32,
    #[case] warned: usize,
) {
    let rules = json!({"stamp": {"backoffLimit": {"default": default, "max": max}}});
    let mut spec = json!({"backoffLimit": arrives});
    if per_index {
        spec["backoffLimitPerIndex"] = json!(1);
    }
    let mut before = job(json!({}), spec);
    if keep {
        before["metadata"]["annotations"] = json!({"job-handler/keep": "x, backoffLimit"});
    }
    let (after, warnings) = Webhook::new([policy("p", rules)]).create(&before);
    assert_eq!((after["spec"]["backoffLimit"].as_i64(), warnings.len()), (Some(i64::from(expected)), warned));
}

#[test]
fn existing_labels_are_kept() {
    let mut before = job(json!({"app": "build", "team": "own"}), json!({}));
    let (after, _) = Webhook::builds().create(&before);
    assert_eq!(after["metadata"]["labels"]["team"], "own");
    assert_eq!(after["spec"]["template"]["metadata"]["labels"], json!({"team": "build"}));
    // Without any map, and without the template's metadata.
    before["metadata"] = json!({"name": "a", "namespace": "ci"});
    before["spec"]["template"].as_object_mut().unwrap().remove("metadata");
    let rules = json!({"stamp": {"labels": {"team": "build", "example.org/a": "c"}}});
    let (after, _) = Webhook::new([policy("p", rules)]).create(&before);
    let both = json!({"team": "build", "example.org/a": "c"});
    assert_eq!(
        (&after["metadata"]["labels"], &after["spec"]["template"]["metadata"]["labels"]),
        (&both, &both)
    );
}

#[test]
fn a_job_without_labels_inherits_those_of_its_template() {
    let mut before = job(json!({}), json!({}));
    before["metadata"].as_object_mut().unwrap().remove("labels");
    before["spec"]["template"]["metadata"]["labels"] = json!({"app": "build", "id": "9"});
    let (after, _) = Webhook::builds().create(&before);
    assert_eq!(after["metadata"]["labels"], json!({"app": "build", "id": "9", "team": "build", GROUP: "9"}));
}

/// Also what the API would do after our patch: where the forged group was the only label, none is left.
#[test]
fn inheritance_ignores_a_forged_group_and_includes_the_opt_out() {
    let mut before = job(json!({GROUP: "x"}), json!({}));
    before["spec"]["template"]["metadata"]["labels"] =
        json!({"app": "build", "id": "9", "job-handler/enabled": "false"});
    let (after, _) = Webhook::builds().create(&before);
    assert_eq!(
        after["metadata"]["labels"],
        json!({"app": "build", "id": "9", "job-handler/enabled": "false", GROUP: "9"})
    );
    assert!(annotation(&after, STAMPED).contains("opted out"));
}

#[test]
fn the_stamped_group_selects_no_policy() {
    let rules = json!({"jobSelector": {"matchLabels": {GROUP: "x"}}, "stamp": {"labels": {"a": "b"}}});
    let forged = job(json!({GROUP: "x"}), json!({}));
    assert_eq!(Webhook::new([policy("p", rules)]).create(&forged).0, forged);
}

#[test]
fn a_stamped_label_can_select_further_policies() {
    let chain = [
        cluster_policy("first", json!({"stamp": {"labels": {"team": "x"}}})),
        policy(
            "second",
            json!({"jobSelector": {"matchLabels": {"team": "x"}},
            "group": {"type": "Labels", "labelKeys": ["team"]}, "stamp": {"labels": {"tier": "y"}}}),
        ),
        policy(
            "third",
            json!({"jobSelector": {"matchLabels": {"tier": "y"}},
            "stamp": {"activeDeadlineSeconds": {"default": 5}}}),
        ),
    ];
    let (after, _) = Webhook::new(chain).create(&job(json!({}), json!({})));
    assert_eq!(after["spec"]["activeDeadlineSeconds"], 5);
    assert_eq!(after["metadata"]["labels"][GROUP], "x");
    // A policy that no longer selects the Job once it has stamped it must not alternate between both states.
    let once = policy(
        "once",
        json!({"stamp": {"labels": {"seen": "yes"}, "activeDeadlineSeconds": {"default": 7}},
        "jobSelector": {"matchExpressions": [{"key": "seen", "operator": "DoesNotExist"}]}}),
    );
    let (after, _) = Webhook::new([once]).create(&job(json!({}), json!({})));
    assert_eq!(after["metadata"]["labels"]["seen"], "yes");
}

#[test]
fn a_job_without_the_label_key_has_no_group_and_the_annotation_says_so() {
    let (after, _) = Webhook::builds().create(&job(json!({"app": "build"}), json!({})));
    assert!(after["metadata"]["labels"].get(GROUP).is_none());
    assert!(
        annotation(&after, STAMPED)
            .contains("no group: the Job has no label id (JobPolicy ci/builds asks for one)")
    );
}

#[test]
fn a_group_limit_without_a_group_is_explained() {
    let rules = json!({"limits": [{"name": "one", "maxActiveJobs": 1, "scope": "Group"}]});
    let (after, _) = Webhook::new([policy("p", rules)]).create(&job(json!({}), json!({})));
    assert_eq!(
        annotation(&after, STAMPED),
        "no group: limit \"one\" of JobPolicy ci/p counts groups, and no policy names one"
    );
}

#[test]
fn a_forged_group_is_removed() {
    for (labels, group) in [
        (json!({"app": "build", "id": "7", GROUP: "x"}), Some("7")),
        (json!({"app": "build", GROUP: "x"}), None),
    ] {
        let mut forged = job(labels, json!({}));
        forged["spec"]["template"]["metadata"]["labels"] = json!({GROUP: "x"});
        let (after, warnings) = Webhook::builds().create(&forged);
        for labels in [&after["metadata"]["labels"], &after["spec"]["template"]["metadata"]["labels"]] {
            assert_eq!(labels.get(GROUP).and_then(Value::as_str), group);
        }
        assert!(warnings[0].contains(GROUP), "{warnings:?}");
    }
    // A policy that groups by nothing leaves no group either.
    let (after, _) = Webhook::new([policy("p", json!({}))]).create(&job(json!({GROUP: "x"}), json!({})));
    assert_eq!(after["metadata"]["labels"], json!({}));
}

#[test]
fn owner_groups_use_the_controller() {
    let mut before = job(json!({}), json!({}));
    before["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "u", "controller": true}]);
    let (after, _) = Webhook::new([policy("p", json!({"group": {"type": "Owner"}}))]).create(&before);
    assert_eq!(after["metadata"]["labels"][GROUP], "nightly");
}

#[test]
fn forged_annotations_are_overwritten() {
    let mut forged = job(json!({"app": "build", "id": "7"}), json!({}));
    forged["metadata"]["annotations"] = json!({
        "mine": "kept", "job-handler/status": "completed", "job-handler/results": "elsewhere", STAMPED: "nothing",
        TTL: "1", "job-handler/queued-at": "2020-01-01T00:00:00Z",
    });
    let (after, _) = Webhook::builds().create(&forged);
    let plain = Webhook::builds().create(&job(json!({"app": "build", "id": "7"}), json!({}))).0;
    let mut expected = plain["metadata"]["annotations"].clone();
    expected["mine"] = json!("kept");
    assert_eq!(after["metadata"]["annotations"], expected);
}

/// A forged `stamped` annotation cannot hide a label from the policies that select by it.
#[test]
fn forged_label_claims_have_no_effect() {
    let mut forged = job(json!({"app": "build", "id": "7"}), json!({"activeDeadlineSeconds": 9000}));
    forged["metadata"]["annotations"] = json!({STAMPED: "label app: build on the Job (JobPolicy ci/builds)"});
    let (after, _) = Webhook::builds().create(&forged);
    assert_eq!(after["spec"]["activeDeadlineSeconds"], 7200);
    assert!(!annotation(&after, STAMPED).contains("label app"));
}

/// `kubectl get job -o yaml`, another name, `kubectl create`.
#[test]
fn a_copy_of_a_stored_job_is_stamped_like_its_original() {
    let original = Webhook::builds().create(&job(json!({"app": "build", "id": "7"}), json!({}))).0;
    let mut copy = with(&original, "/metadata/name", json!("b"));
    copy["metadata"]["annotations"]["job-handler/status"] = json!("completed");
    copy["metadata"]["annotations"]["job-handler/results"] = json!("a-results");
    assert_eq!(Webhook::builds().create(&copy).0, with(&original, "/metadata/name", json!("b")));
}

/// Another webhook changes the Job between two calls for one create.
#[test]
fn reinvocation_after_another_webhook_keeps_the_annotation() {
    let first =
        Webhook::builds().create(&job(json!({"app": "build", "id": "7"}), json!({"backoffLimit": 9}))).0;
    let mut changed = with(&first, "/metadata/labels/sidecar", json!("yes"));
    changed["spec"]["template"]["spec"]["containers"][0]["env"] = json!([]);
    assert_eq!(Webhook::builds().create(&changed), (changed, vec![]));
}

#[test]
fn an_opted_out_job_keeps_maxima_limits_and_group() {
    let labels = json!({"app": "build", "id": "8", "job-handler/enabled": "false"});
    let (after, warnings) = Webhook::builds().create(&job(labels, json!({"activeDeadlineSeconds": 9000})));
    assert_eq!(after["spec"]["activeDeadlineSeconds"], 7200);
    assert_eq!(after["spec"]["backoffLimit"], 3, "the API's 6 is above the maximum");
    assert!(after["spec"].get("ttlSecondsAfterFinished").is_none(), "no default, no harvest");
    assert_eq!(after["metadata"]["labels"][GROUP], "8");
    assert!(after["metadata"]["labels"].get("team").is_none());
    assert!(annotation(&after, STAMPED).contains("opted out"));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

fn queue() -> Webhook {
    Webhook::new([policy("q", json!({"limits": [{"name": "few", "maxActiveJobs": 2, "whenFull": "Queue"}]}))])
}

#[test]
fn a_queue_limit_suspends_the_job_and_marks_it_as_queued() {
    let (after, _) = queue().create(&job(json!({}), json!({})));
    assert_eq!(after["spec"]["suspend"], true);
    assert_eq!(annotation(&after, "job-handler/queued-at"), common::NOW);
    assert_eq!(annotation(&after, STAMPED), "queued: waits for a slot of limit \"few\" of JobPolicy ci/q");
}

#[test]
fn a_job_that_is_suspended_by_its_author_or_another_manager_is_not_queued() {
    let mut own = job(json!({}), json!({"suspend": true}));
    own["metadata"]["annotations"] = json!({"job-handler/queued-at": common::NOW});
    let (after, _) = queue().create(&own);
    assert_eq!(annotation(&after, "job-handler/queued-at"), "", "its author suspended it");
    for (labels, spec) in [
        (json!({"kueue.x-k8s.io/queue-name": "q"}), json!({})),
        (json!({}), json!({"managedBy": "example.org/other"})),
    ] {
        let (after, _) = queue().create(&job(labels, spec));
        assert_eq!(after["spec"]["suspend"], false);
        assert_eq!(annotation(&after, "job-handler/queued-at"), "");
    }
    let (after, _) = queue().create(&job(json!({}), json!({"managedBy": "kubernetes.io/job-controller"})));
    assert_eq!(after["spec"]["suspend"], true);
}

/// The manifest's author wrote a TTL; what is stored has the harvest deadline.
#[test]
fn the_same_manifest_applied_twice_stays_stamped() {
    let webhook = Webhook::builds();
    let manifest =
        job(json!({"app": "build", "id": "7"}), json!({"ttlSecondsAfterFinished": 3600, "backoffLimit": 6}));
    let stored = webhook.create(&manifest).0;
    // Three-way merge: what the manifest states differs from what is stored, and is sent again.
    let mut second = with(&stored, "/spec/ttlSecondsAfterFinished", json!(3600));
    second["spec"]["backoffLimit"] = json!(6);
    assert_eq!(webhook.update(&stored, &second), (stored.clone(), vec![]));
    // `kubectl replace` drops what is not in the manifest: labels, annotations, deadline.
    let replaced = webhook.update(&stored, &manifest).0;
    assert_eq!(replaced["spec"]["ttlSecondsAfterFinished"], 604_800);
    assert_eq!(replaced["spec"]["activeDeadlineSeconds"], 1800);
    assert_eq!(
        (annotation(&replaced, TTL), annotation(&replaced, STAMPED)),
        ("3600", annotation(&stored, STAMPED))
    );
}

#[test]
fn an_update_is_clamped_only_in_the_fields_that_it_changes() {
    let webhook = Webhook::builds();
    let stored = webhook.create(&job(json!({"app": "build", "id": "7"}), json!({}))).0;
    let (after, warnings) =
        webhook.update(&stored, &with(&stored, "/spec/activeDeadlineSeconds", json!(9000)));
    assert_eq!(after["spec"]["activeDeadlineSeconds"], 7200);
    assert_eq!(warnings.len(), 1);
    assert!(
        annotation(&after, STAMPED)
            .contains("activeDeadlineSeconds: 9000 -> 7200 (maximum of JobPolicy ci/builds)")
    );
    assert!(annotation(&after, STAMPED).contains("backoffLimit: 6 -> 0 (default"));
    // A value below the maximum removes the entry of that field.
    let (after, _) = webhook.update(&stored, &with(&stored, "/spec/backoffLimit", json!(2)));
    assert!(!annotation(&after, STAMPED).contains("backoffLimit"));
    // A field that is removed gets the default again.
    let (after, _) = webhook.update(&stored, &with(&stored, "/spec/ttlSecondsAfterFinished", Value::Null));
    assert_eq!(
        (after["spec"]["ttlSecondsAfterFinished"].as_i64(), annotation(&after, TTL)),
        (Some(604_800), "86400")
    );
    // An update of another field changes nothing, even if a policy was created meanwhile.
    let touched = with(&stored, "/metadata/labels/x", json!("y"));
    assert_eq!(
        Webhook::new([policy("b", builds()), policy("c", json!({"stamp": {"labels": {"a": "b"}}}))])
            .update(&stored, &touched)
            .0,
        touched
    );
}

/// The sink stamped a Job that was created while the webhook was unavailable.
#[test]
fn a_repaired_job_is_not_changed() {
    let missed = job(json!({"app": "build", "id": "7"}), json!({}));
    let mut repaired = with(&missed, "/spec/ttlSecondsAfterFinished", json!(604_800));
    repaired["metadata"]["annotations"] = json!({TTL: "86400", STAMPED: "ttlSecondsAfterFinished: unset -> 86400 (default of \
        JobPolicy ci/builds) once the result is stored, 604800 until then"});
    assert_eq!(Webhook::builds().update(&missed, &repaired), (repaired.clone(), vec![]));
}

fn finished(job: &Value, kind: &str) -> Value {
    let condition =
        json!({"conditions": [{"type": kind, "status": "True", "lastTransitionTime": common::NOW}]});
    with(job, "/status", condition)
}

fn marked(job: &Value, ttl: Value) -> Value {
    let mut job = with(job, "/spec/ttlSecondsAfterFinished", ttl);
    job["metadata"]["annotations"]["job-handler/status"] = json!("completed");
    job["metadata"]["annotations"]["job-handler/results"] = json!("a-results");
    job
}

#[test]
fn the_sinks_patch_of_a_harvested_job_is_not_changed() {
    let webhook = Webhook::builds();
    let done = finished(&webhook.create(&job(json!({"app": "build"}), json!({}))).0, "Complete");
    for ttl in [json!(86400), json!(0), Value::Null] {
        let harvested = marked(&done, ttl);
        assert_eq!(webhook.update(&done, &harvested), (harvested.clone(), vec![]));
    }
    // After the harvest, the author may change the TTL up to the maximum.
    let harvested = marked(&done, json!(86400));
    let (after, _) =
        webhook.update(&harvested, &with(&harvested, "/spec/ttlSecondsAfterFinished", json!(3600)));
    assert_eq!(after["spec"]["ttlSecondsAfterFinished"], 3600);
    let (after, warnings) =
        webhook.update(&harvested, &with(&harvested, "/spec/ttlSecondsAfterFinished", json!(9_000_000)));
    assert_eq!((&after["spec"]["ttlSecondsAfterFinished"], warnings.len()), (&json!(604_800), 1));
}

#[test]
fn forged_annotations_on_a_running_job_have_no_effect() {
    let webhook = Webhook::builds();
    let running = webhook.create(&job(json!({"app": "build"}), json!({}))).0;
    let (after, _) = webhook.update(&running, &marked(&running, json!(1)));
    assert_eq!((&after["spec"]["ttlSecondsAfterFinished"], annotation(&after, TTL)), (&json!(604_800), "1"));
    // Finished but not harvested: the TTL waits too.
    let done = finished(&running, "Failed");
    let (after, _) = webhook.update(&done, &with(&done, "/spec/ttlSecondsAfterFinished", json!(0)));
    assert_eq!((&after["spec"]["ttlSecondsAfterFinished"], annotation(&after, TTL)), (&json!(604_800), "0"));
}

#[test]
fn applying_the_manifest_again_does_not_undo_cleanup_policy_never() {
    let mut rules = builds();
    rules["cleanup"] = json!({"failedPolicy": "Never"});
    let webhook = Webhook::new([policy("builds", rules)]);
    let created = webhook.create(&job(json!({"app": "build"}), json!({"ttlSecondsAfterFinished": 60}))).0;
    let again = |kept: &Value| webhook.update(kept, &with(kept, "/spec/ttlSecondsAfterFinished", json!(60)));
    let failed = marked(&finished(&created, "Failed"), Value::Null);
    let (after, warnings) = again(&failed);
    assert_eq!(after, failed);
    assert!(warnings[0].contains("Never"), "{warnings:?}");
    let completed = marked(&finished(&created, "Complete"), json!(70));
    assert_eq!(again(&completed).0["spec"]["ttlSecondsAfterFinished"], 60);
}

#[test]
fn containers_without_resources_are_stamped_once() {
    let webhook =
        Webhook::new([policy("p", json!({"stamp": {"containerResources": {"limits": {"cpu": 2}}}}))]);
    let mut before = job(json!({}), json!({}));
    let own = json!({"name": "own", "resources": {"requests": {"cpu": "1"}}});
    before["spec"]["template"]["spec"]["containers"] = json!([{"name": "bare", "resources": {}}, own]);
    let (after, warnings) = webhook.create(&before);
    let containers = &after["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["resources"], json!({"limits": {"cpu": "2"}}), "a number is an amount too");
    assert_eq!(containers[1], own);
    let stamped = annotation(&after, STAMPED);
    assert!(stamped.contains("containerResources: bare (default of JobPolicy"), "{stamped}");
    assert!(warnings.is_empty(), "{warnings:?}");
    let mut out = before;
    out["metadata"]["labels"] = json!({"job-handler/enabled": "false"});
    let (after, _) = webhook.create(&out);
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["resources"], json!({}), "opted out");
}

#[test]
fn a_queueing_failure_backoff_only_queues_jobs_with_a_group() {
    let spec = json!({
        "group": {"type": "Labels", "labelKeys": ["id"]},
        "failureBackoff": {"initialSeconds": 1, "maxSeconds": 2, "action": "Queue"},
    });
    let webhook = Webhook::new([policy("p", spec)]);
    let (grouped, _) = webhook.create(&job(json!({"id": "7"}), json!({})));
    assert_eq!(grouped["spec"]["suspend"], true);
    let stamped = annotation(&grouped, STAMPED);
    assert!(
        stamped.contains("queued: waits for its group's next try (failureBackoff of JobPolicy"),
        "{stamped}"
    );
    let (alone, _) = webhook.create(&job(json!({}), json!({})));
    assert_ne!(alone["spec"]["suspend"], true);
}
