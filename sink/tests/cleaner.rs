//! The one-shot cleaner against an apiserver in memory: for any cluster and page size it does what a plain sort would.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Apiserver;
use job_handler_sink::cleaner::{DryRun, Options, Report, prune};
use proptest::prelude::*;
use serde_json::json;

const KEY: &str = "argocd.argoproj.io/instance";

#[derive(Clone, Debug)]
struct Plan {
    namespace: &'static str,
    group: Option<&'static str>,
    created: u8,
    finished: bool,
    deleting: bool,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (
        prop::sample::select(vec!["a", "b", "kube-system"]),
        prop::sample::select(vec![None, Some(""), Some("x"), Some("y")]),
        0u8..6,
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.1),
    );
    let plan = plan.prop_map(|(namespace, group, created, finished, deleting)| Plan {
        namespace,
        group,
        created,
        finished,
        deleting,
    });
    prop::collection::vec(plan, 0..25)
}

fn cluster(plans: &[Plan]) -> Apiserver {
    let apiserver = Apiserver::default();
    for (n, plan) in plans.iter().enumerate() {
        let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {
            "name": format!("job-{n}"), "namespace": plan.namespace, "uid": uid(n),
            "creationTimestamp": format!("2026-01-01T00:00:0{}Z", plan.created), "labels": {}}});
        if let Some(group) = plan.group {
            job["metadata"]["labels"][KEY] = group.into();
        }
        if plan.deleting {
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
        }
        if plan.finished {
            job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        }
        apiserver.put("jobs", job);
    }
    apiserver
}

/// Not in the order of names, so that the order of pages is not that of age.
fn uid(n: usize) -> String {
    format!("{:04}", (n * 7919) % 10_000)
}

/// What a plain sort would delete.
fn oracle(plans: &[Plan]) -> BTreeSet<String> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (n, plan) in plans.iter().enumerate() {
        if let (false, Some(group), false) = (plan.namespace == "kube-system", plan.group, plan.deleting)
            && !group.is_empty()
        {
            groups.entry((plan.namespace, group)).or_default().push((plan.created, uid(n), n));
        }
    }
    let mut gone = BTreeSet::new();
    for jobs in groups.values_mut() {
        jobs.sort();
        jobs.pop();
        gone.extend(jobs.iter().filter(|(_, _, n)| plans[*n].finished).map(|(_, _, n)| format!("job-{n}")));
    }
    gone
}

async fn run(apiserver: &Apiserver, page: u32, dry_run: DryRun) -> (Report, String) {
    let options = Options { group_label: KEY.into(), namespaces: vec![], page, dry_run, unharvested: false };
    let mut out = Vec::new();
    let report = prune(apiserver.client(), &options, &mut out).await.unwrap();
    (report, String::from_utf8(out).unwrap())
}

fn names(apiserver: &Apiserver) -> BTreeSet<String> {
    apiserver.all("jobs").iter().map(|job| job["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_plan_is_the_oracles_and_a_dry_run_is_the_real_one(
        plans in plans(), page in 1u32..8, tokens_lost in 0usize..4,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let purged = |text: &str| -> BTreeSet<String> {
            let lines = text.lines().filter(|line| line.starts_with("PURGE"));
            lines.map(|line| line.split(['/', ' ']).find(|word| word.starts_with("job-")).unwrap().to_owned()).collect()
        };
        runtime.block_on(async {
            let expected = oracle(&plans);
            let apiserver = cluster(&plans);
            let all = names(&apiserver);
            for dry_run in [DryRun::Client, DryRun::Server] {
                let (report, text) = run(&apiserver, page, dry_run).await;
                prop_assert_eq!(&names(&apiserver), &all, "nothing is deleted");
                prop_assert_eq!(&purged(&text), &expected);
                prop_assert_eq!(report.failed, 0);
            }
            apiserver.forget_tokens(tokens_lost);
            let (report, text) = run(&apiserver, page, DryRun::None).await;
            prop_assert_eq!(&purged(&text), &expected);
            prop_assert_eq!(all.difference(&names(&apiserver)).cloned().collect::<BTreeSet<_>>(), expected);
            let groups: BTreeSet<_> = plans.iter()
                .filter(|p| p.namespace != "kube-system" && !p.deleting && p.group.is_some_and(|g| !g.is_empty()))
                .map(|p| (p.namespace, p.group)).collect();
            let closing = format!("Found {} (namespace, group) pairs", groups.len());
            prop_assert!(text.lines().last().unwrap().starts_with(&closing), "{}", text);
            prop_assert_eq!(report.groups, groups.len());
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn one_failed_delete_never_stops_the_rest() {
    let plan = |created| Plan { namespace: "a", group: Some("x"), created, finished: true, deleting: false };
    let apiserver = cluster(&[plan(1), plan(2), plan(3), plan(4)]);
    apiserver.refuse("jobs/job-1", 403, "admission webhook \"no\" denied the request");
    let (report, text) = run(&apiserver, 500, DryRun::None).await;
    assert_eq!(report, Report { groups: 1, purged: 2, skipped: 1, failed: 1 });
    let line = text.lines().find(|line| line.contains("a/job-1")).unwrap();
    assert_eq!(
        line,
        "PURGE a/job-1  argocd.argoproj.io/instance=x  2026-01-01T00:00:02Z  FAILED: cannot delete job a/job-1: \
         admission webhook \"no\" denied the request (HTTP 403)"
    );
    assert!(text.contains("PURGE a/job-0  argocd.argoproj.io/instance=x  2026-01-01T00:00:01Z  SUCCESS"));
    assert!(text.contains(
        "SKIP  a/job-3  argocd.argoproj.io/instance=x  2026-01-01T00:00:04Z  the newest of its group"
    ));
}

#[tokio::test]
async fn a_job_whose_result_is_not_stored_yet_stays_unless_told_otherwise() {
    let plan = |created| Plan { namespace: "a", group: Some("x"), created, finished: true, deleting: false };
    let annotated = |annotations: &serde_json::Value, labels: &serde_json::Value| {
        let apiserver = cluster(&[plan(1), plan(2)]);
        let mut job = apiserver.get("jobs", "a", "job-0").unwrap();
        job["metadata"]["annotations"] = annotations.clone();
        json_patch::merge(&mut job["metadata"]["labels"], labels);
        apiserver.put("jobs", job);
        apiserver
    };
    let parked = json!({"job-handler/ttl-seconds-after-finished": "60"});
    let stored =
        json!({"job-handler/ttl-seconds-after-finished": "60", "job-handler/results": "job-0-results"});
    let opted_out = json!({"job-handler/stamped": "opted out: of defaults, harvest and prune"});
    for (annotations, labels, why) in [
        (parked.clone(), json!({}), "its result is not stored yet"),
        (stored, json!({}), ""),
        (
            json!({"job-handler/stamped": "nothing to set: selected by JobPolicy a/p"}),
            json!({}),
            "a policy selected it and no stored result is named on it",
        ),
        (opted_out, json!({"job-handler/enabled": "false"}), ""),
        (json!({}), json!({}), ""),
    ] {
        let apiserver = annotated(&annotations, &labels);
        let (report, text) = run(&apiserver, 500, DryRun::None).await;
        let stays = !why.is_empty();
        assert_eq!(report.purged, usize::from(!stays), "{annotations}: {text}");
        assert_eq!(names(&apiserver).contains("job-0"), stays, "{annotations}: {text}");
        let line = text.lines().find(|line| line.contains("a/job-0")).unwrap();
        let end =
            if stays { format!("{why}; --unharvested deletes it all the same") } else { "SUCCESS".into() };
        assert!(line.ends_with(&end) && line.starts_with("SKIP") == stays, "{line}");
    }
    let apiserver = annotated(&parked, &json!({}));
    let options = Options {
        group_label: KEY.into(),
        namespaces: vec![],
        page: 500,
        dry_run: DryRun::None,
        unharvested: true,
    };
    let report = prune(apiserver.client(), &options, &mut Vec::new()).await.unwrap();
    assert_eq!((report.purged, names(&apiserver).contains("job-0")), (1, false));
}

#[tokio::test]
async fn a_wrong_key_is_told() {
    let options = Options {
        group_label: "a b".into(),
        namespaces: vec![],
        page: 1,
        dry_run: DryRun::None,
        unharvested: false,
    };
    let error = prune(Apiserver::default().client(), &options, &mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("`a b` is not a label key"), "{error}");
}
