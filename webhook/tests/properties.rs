//! Properties that hold for any Job under any policies.

#![allow(clippy::unwrap_used, reason = "strategies are tests; clippy knows only #[test] itself")]

mod common;

use common::{Webhook, applied, cluster_policy, job, policy};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Keys and values from a small pool, so that selectors, stamps and forgeries meet.
fn labels() -> impl Strategy<Value = Value> {
    let key =
        prop::sample::select(vec!["a", "b", "example.org/c~d", "job-handler/group", "job-handler/enabled"]);
    let value = prop::sample::select(vec!["", "x", "y", "false", "true"]);
    prop::collection::btree_map(key, value, 0..4).prop_map(|map| json!(map))
}

fn annotations() -> impl Strategy<Value = Value> {
    let stamped = prop::sample::select(vec![
        "ttlSecondsAfterFinished: unset -> 60 (x)",
        "ttlSecondsAfterFinished: 70 -> 60 (x); backoffLimit: 6 -> 2 (x)",
        "label a: x on the Job and its pods (JobPolicy ci/p)",
        "label a: y on its pods (x); label b: x on the Job (x)",
        "queued: forged",
        "activeDeadlineSeconds: 99 -> 7 (x)",
        "; : ;; label : on ",
    ]);
    let entry = prop_oneof![
        stamped.prop_map(|text| ("job-handler/stamped", text)),
        prop::sample::select(vec!["60", "0", "-7", "604800", "much"])
            .prop_map(|text| ("job-handler/ttl-seconds-after-finished", text)),
        Just(("job-handler/queued-at", common::NOW)),
        Just(("job-handler/queued-at", "never")),
        Just(("job-handler/keep", "backoffLimit")),
        Just(("job-handler/status", "completed")),
        Just(("job-handler/results", "r")),
        Just(("other", "kept")),
    ];
    prop::collection::btree_map(Just(()), entry.clone(), 0..1)
        .prop_flat_map(move |_| prop::collection::vec(entry.clone(), 0..5))
        .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()))
}

fn any_job() -> impl Strategy<Value = Value> {
    let number = || prop::option::of(prop::sample::select(vec![-1, 0, 2, 6, 7, 60, 70, 604_800, i32::MAX]));
    let spec = (number(), number(), number(), any::<bool>(), prop::option::of(any::<bool>()));
    (labels(), prop::option::of(annotations()), prop::option::of(labels()), spec, any::<bool>()).prop_map(
        |(labels, annotations, pods, (ttl, deadline, backoff, suspend, per_index), whole)| {
            let mut job = job(labels, json!({"suspend": suspend}));
            for (field, value) in [
                ("ttlSecondsAfterFinished", ttl),
                ("activeDeadlineSeconds", deadline),
                ("backoffLimit", backoff),
                ("backoffLimitPerIndex", per_index.filter(|p| *p).map(|_| 1)),
            ] {
                if let Some(value) = value {
                    job["spec"][field] = json!(value);
                }
            }
            if let Some(annotations) = annotations {
                job["metadata"]["annotations"] = annotations;
            }
            match pods {
                Some(labels) => job["spec"]["template"]["metadata"]["labels"] = labels,
                None if !whole => job["spec"]["template"]["metadata"] = Value::Null,
                None => {}
            }
            if !whole {
                job["metadata"]["labels"] = Value::Null;
            }
            job
        },
    )
}

fn range() -> impl Strategy<Value = Value> {
    let number = || prop::option::of(prop::sample::select(vec![0, 2, 7, 60, 70]));
    (number(), number()).prop_map(|(default, max)| json!({"default": default, "max": max}))
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => Just(Value::Null),
        2 => labels().prop_map(|labels| json!({"matchLabels": labels})),
        1 => prop::sample::select(vec!["Exists", "DoesNotExist"])
            .prop_map(|operator| json!({"matchExpressions": [{"key": "a", "operator": operator}]})),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let stamp = (range(), range(), range(), labels());
    let group = prop_oneof![
        Just(Value::Null),
        Just(json!({"type": "Owner"})),
        Just(json!({"type": "Labels", "labelKeys": ["a"]})),
        Just(json!({"type": "Labels", "labelKeys": ["a", "example.org/c~d"]})),
    ];
    let results = prop::option::of(prop::sample::select(vec![60, 604_800]));
    let limit = prop::option::of(prop::sample::select(vec!["Queue", "Reject"]));
    (selector(), stamp, group, results, limit, prop::bool::weighted(0.1)).prop_map(
        |(selector, (ttl, deadline, backoff, labels), group, results, limit, warn)| {
            let mut labels = labels;
            labels.as_object_mut().unwrap().retain(|key, _| !key.starts_with("job-handler/"));
            let mut spec = json!({
                "jobSelector": selector,
                "mode": if warn { "Warn" } else { "Enforce" },
                "stamp": {"ttlSecondsAfterFinished": ttl, "activeDeadlineSeconds": deadline, "backoffLimit": backoff,
                    "labels": labels},
                "group": group,
            });
            if let Some(seconds) = results {
                spec["results"] = json!({"harvestDeadlineSeconds": seconds});
            }
            if let Some(when_full) = limit {
                spec["limits"] = json!([{"name": "l", "maxActiveJobs": 1, "whenFull": when_full}]);
            }
            spec
        },
    )
}

fn webhook() -> impl Strategy<Value = Webhook> {
    (prop::collection::vec(spec(), 0..3), prop::collection::vec(spec(), 0..2)).prop_map(|(own, cluster)| {
        let own = own.into_iter().enumerate().map(|(n, spec)| policy(&format!("p{n}"), spec));
        let cluster = cluster.into_iter().enumerate().map(|(n, spec)| cluster_policy(&format!("c{n}"), spec));
        Webhook::new(own.chain(cluster))
    })
}

/// Everything that is not ours to set.
fn foreign(job: &Value) -> Value {
    let mut job = job.clone();
    for field in ["ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "suspend"] {
        job["spec"].as_object_mut().unwrap().remove(field);
    }
    job["metadata"].as_object_mut().unwrap().remove("labels");
    if let Some(metadata) = job["spec"]["template"]["metadata"].as_object_mut() {
        metadata.remove("labels");
        if metadata.is_empty() {
            job["spec"]["template"]["metadata"] = Value::Null;
        }
    }
    if let Some(annotations) = job["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| !key.starts_with("job-handler/"));
    }
    let metadata = job["metadata"].as_object_mut().unwrap();
    if metadata.get("annotations").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
        metadata.remove("annotations");
    }
    job
}

proptest! {
    // What it once found stands as plain tests in stamping.rs.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// `create` checks that our own output is left alone; here, that nothing else of the Job is touched.
    #[test]
    fn a_create_is_stamped_once_and_changes_only_our_fields(webhook in webhook(), job in any_job()) {
        let (after, _) = webhook.create(&job);
        prop_assert_eq!(foreign(&after), foreign(&job));
    }

    #[test]
    fn a_created_job_never_exceeds_the_maxima(webhook in webhook(), job in any_job()) {
        let (after, _) = webhook.create(&job);
        let mut raw: std::collections::BTreeMap<String, String> =
            serde_json::from_value(job["metadata"]["labels"].clone()).unwrap_or_default();
        // Never an input: anybody can write it.
        raw.remove("job-handler/group");
        for policy in webhook.set.iter().filter(|p| p.enforced() && p.selects("ci", &webhook.namespace, &raw)) {
            if raw.is_empty() { continue; }
            let max = |range: Option<job_handler_shared::policy::stamp::Range>| range.and_then(|r| r.max).unwrap_or(i64::MAX);
            let stamp = policy.spec.stamp.clone().unwrap();
            let deadline = after["spec"]["activeDeadlineSeconds"].as_i64();
            let bound = stamp.active_deadline_seconds.and_then(|r| r.max);
            prop_assert!(bound.is_none_or(|max| deadline.is_some_and(|d| d <= max)), "{after:#}");
            let retries = after["spec"]["backoffLimit"].as_i64().unwrap_or(0);
            let indexed = job["spec"]["backoffLimitPerIndex"].is_i64();
            prop_assert!(indexed || retries <= max(stamp.backoff_limit), "{after:#}");
            let ttl = after["metadata"]["annotations"]["job-handler/ttl-seconds-after-finished"].as_str()
                .and_then(|t| t.parse::<i64>().ok())
                .or(after["spec"]["ttlSecondsAfterFinished"].as_i64());
            prop_assert!(ttl.is_none_or(|t| t <= max(stamp.ttl_seconds_after_finished)), "{after:#}");
        }
    }

    #[test]
    fn forged_annotations_are_removed_on_create(webhook in webhook(), job in any_job()) {
        let (ops, decision) = webhook.create_ops(&job);
        if decision.annotations.is_empty() {
            prop_assert!(ops.is_empty(), "no policy, and yet {ops:?}");
        } else if !decision.annotations.contains_key("job-handler/status") {
            // No policy: only the annotations that would make the sink start the Job are removed.
            let (mut before, mut after) = (job.clone(), applied(&job, ops));
            prop_assert!(after["metadata"]["annotations"].get("job-handler/queued-at").is_none());
            for job in [&mut before, &mut after] {
                let annotations = job["metadata"]["annotations"].as_object_mut().unwrap();
                annotations.remove("job-handler/queued-at");
                annotations.remove("job-handler/stamped");
            }
            prop_assert_eq!(after, before);
        } else {
            let after = applied(&job, ops);
            let annotations = &after["metadata"]["annotations"];
            prop_assert!(annotations.get("job-handler/status").is_none());
            prop_assert!(annotations.get("job-handler/results").is_none());
            prop_assert!(annotations.get("job-handler/queued-at").is_none() || after["spec"]["suspend"] == true);
        }
    }

    #[test]
    fn an_update_is_stamped_once_and_changes_only_our_fields(
        webhook in webhook(), first in any_job(), ttl in prop::option::of(0i32..100), deadline in prop::option::of(1i64..100),
    ) {
        let stored = webhook.create(&first).0;
        let mut new = stored.clone();
        for (field, value) in [("ttlSecondsAfterFinished", ttl.map(i64::from)), ("activeDeadlineSeconds", deadline)] {
            match value {
                Some(value) => new["spec"][field] = json!(value),
                None => { new["spec"].as_object_mut().unwrap().remove(field); }
            }
        }
        let (after, _) = webhook.update(&stored, &new);
        prop_assert_eq!(foreign(&after), foreign(&new));
        prop_assert_eq!(&after["metadata"]["labels"], &new["metadata"]["labels"]);
        prop_assert_eq!(&after["spec"]["template"], &new["spec"]["template"]);
    }
}
