//! The `prune` command against an apiserver in memory: for any cluster and page size it deletes what a plain sort would.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in helpers too")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Apiserver, Fault};
use http::Method;
use job_handler_shared::policy::cleanup::Keep;
use job_handler_sink::prune::command::{DryRun, PruneOptions, PruneReport, prune};
use proptest::prelude::*;
use serde_json::json;

const KEY: &str = "argocd.argoproj.io/instance";

#[derive(Clone, Debug)]
struct JobPlan {
    namespace: &'static str,
    group: Option<&'static str>,
    created: u8,
    /// Whether it completed, if it has finished.
    finished: Option<bool>,
    deleting: bool,
}

fn plans() -> impl Strategy<Value = Vec<JobPlan>> {
    let plan = (
        prop::sample::select(vec!["a", "b", "kube-system"]),
        prop::sample::select(vec![None, Some(""), Some("x"), Some("y")]),
        0u8..6,
        prop::option::weighted(0.8, any::<bool>()),
        prop::bool::weighted(0.1),
    );
    let plan = plan.prop_map(|(namespace, group, created, finished, deleting)| JobPlan {
        namespace,
        group,
        created,
        finished,
        deleting,
    });
    prop::collection::vec(plan, 0..25)
}

fn cluster(plans: &[JobPlan]) -> Apiserver {
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
        if let Some(completed) = plan.finished {
            let condition = if completed { "Complete" } else { "Failed" };
            job["status"] = json!({"conditions": [{"type": condition, "status": "True"}]});
        }
        apiserver.put("jobs", job);
    }
    apiserver
}

/// Uids are not in the order of names, so that the order of a list is not that of age.
fn uid(n: usize) -> String {
    format!("{:04}", (n * 7919) % 10_000)
}

/// The Jobs that a plain sort would delete.
fn oracle(plans: &[JobPlan], keep: Keep) -> BTreeSet<String> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (n, plan) in plans.iter().enumerate() {
        if let (false, Some(group), false) = (plan.namespace == "kube-system", plan.group, plan.deleting)
            && !group.is_empty()
        {
            groups.entry((plan.namespace, group)).or_default().push((plan.created, uid(n), n));
        }
    }
    let mut deleted = BTreeSet::new();
    for jobs in groups.values_mut() {
        jobs.sort_by(|a, b| b.cmp(a));
        let completed = jobs.iter().filter(|(_, _, n)| plans[*n].finished == Some(true));
        let newest = jobs.iter().take(keep.newest as usize);
        let kept: BTreeSet<usize> =
            newest.chain(completed.take(keep.newest_succeeded as usize)).map(|(_, _, n)| *n).collect();
        let pruned = jobs.iter().filter(|(_, _, n)| plans[*n].finished.is_some() && !kept.contains(n));
        deleted.extend(pruned.map(|(_, _, n)| format!("job-{n}")));
    }
    deleted
}

fn options(page: u32, keep: Keep, dry_run: DryRun) -> PruneOptions {
    PruneOptions { group_label: KEY.into(), namespaces: vec![], page, keep, dry_run, unharvested: false }
}

const KEEP_ONE: Keep = Keep { newest: 1, newest_succeeded: 0 };

async fn run_with(apiserver: &Apiserver, options: &PruneOptions) -> (PruneReport, String) {
    let mut out = Vec::new();
    let report = prune(apiserver.client(), options, &mut out).await.unwrap();
    (report, String::from_utf8(out).unwrap())
}

async fn run(apiserver: &Apiserver, page: u32, dry_run: DryRun) -> (PruneReport, String) {
    run_with(apiserver, &options(page, KEEP_ONE, dry_run)).await
}

fn names(apiserver: &Apiserver) -> BTreeSet<String> {
    apiserver.all("jobs").iter().map(|job| job["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn purged(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with("PURGE"));
    lines
        .map(|line| line.split(['/', ' ']).find(|word| word.starts_with("job-")).unwrap().to_owned())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_mode_prunes_what_a_plain_sort_would(
        plans in plans(), page in 1u32..8, newest in 1u32..4, newest_succeeded in 0u32..3,
        tokens_lost in 0usize..4, with_token in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let keep = Keep { newest, newest_succeeded };
            let expected = oracle(&plans, keep);
            let mut dry = Vec::new();
            for dry_run in [DryRun::Client, DryRun::Server, DryRun::None] {
                let apiserver = cluster(&plans);
                let all = names(&apiserver);
                apiserver.expire_tokens(tokens_lost, with_token);
                let (report, text) = run_with(&apiserver, &options(page, keep, dry_run)).await;
                prop_assert_eq!(&purged(&text), &expected, "{}", &text);
                prop_assert_eq!((report.purged, report.failed), (expected.len(), 0));
                let deleted: BTreeSet<String> = all.difference(&names(&apiserver)).cloned().collect();
                prop_assert_eq!(&deleted, if dry_run == DryRun::None { &expected } else { &dry_none() });
                let groups: BTreeSet<_> = plans.iter()
                    .filter(|p| p.namespace != "kube-system" && !p.deleting && p.group.is_some_and(|g| !g.is_empty()))
                    .map(|p| (p.namespace, p.group)).collect();
                let closing = format!("Found {} (namespace, group) pairs", groups.len());
                prop_assert!(text.lines().last().unwrap().starts_with(&closing), "{}", text);
                // The lines are the same, except for the remark about the dry run.
                let bare = text.replace(" (server dry run)", "").replace(" (dry run)", "");
                let bare = bare.replace(" (dry run: nothing was deleted)", "");
                let mut lines: Vec<String> = bare.lines().map(str::to_owned).collect();
                // A list that is started again after deletions has other pages, so the order of lines differs.
                if !with_token && tokens_lost > 0 {
                    lines.sort();
                }
                dry.push((report, lines));
            }
            prop_assert_eq!(&dry[0], &dry[2]);
            prop_assert_eq!(&dry[1], &dry[2]);
            Ok(())
        })?;
    }
}

fn dry_none() -> BTreeSet<String> {
    BTreeSet::new()
}

/// A completed Job of group x.
fn of_x(created: u8) -> JobPlan {
    JobPlan { namespace: "a", group: Some("x"), created, finished: Some(true), deleting: false }
}

fn line_of<'a>(text: &'a str, job: &str) -> &'a str {
    text.lines().find(|line| line.contains(&format!("/{job} "))).unwrap_or_else(|| panic!("{job} in {text}"))
}

#[tokio::test]
async fn a_failed_deletion_does_not_stop_the_others() {
    let apiserver = cluster(&[of_x(1), of_x(2), of_x(3), of_x(4)]);
    apiserver.refuse("jobs/job-1", 403, "admission webhook \"no\" denied the request");
    let (report, text) = run(&apiserver, 500, DryRun::None).await;
    assert_eq!(report, PruneReport { groups: 1, purged: 2, skipped: 1, failed: 1, vanished: 0 });
    assert_eq!(
        line_of(&text, "job-1"),
        "PURGE a/job-1  argocd.argoproj.io/instance=x  2026-01-01T00:00:02Z  FAILED: cannot delete job a/job-1: \
         admission webhook \"no\" denied the request (HTTP 403)"
    );
    assert!(text.contains("PURGE a/job-0  argocd.argoproj.io/instance=x  2026-01-01T00:00:01Z  SUCCESS"));
    assert!(text.contains(
        "SKIP  a/job-3  argocd.argoproj.io/instance=x  2026-01-01T00:00:04Z  the newest of its group"
    ));
}

#[tokio::test]
async fn a_job_that_changes_before_its_deletion_is_read_again() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change, &str, bool); 5] = [
        ("touched", |job| job["metadata"]["annotations"] = json!({"a": "b"}), "SUCCESS", false),
        ("another", |job| job["metadata"]["uid"] = "another".into(), "SUCCESS: already deleted", true),
        ("regrouped", |job| job["metadata"]["labels"][KEY] = "y".into(), "its group label has changed", true),
        ("revived", |job| job["status"] = json!({}), "not finished", true),
        (
            "selected",
            |job| job["metadata"]["annotations"] = json!({"job-handler/ttl-seconds-after-finished": "60"}),
            "its result is not stored yet; --unharvested deletes it anyway",
            true,
        ),
    ];
    for (what, change, line_end, stays) in changes {
        let apiserver = cluster(&[of_x(1), of_x(2), of_x(3)]);
        let there = apiserver.clone();
        apiserver.before(Method::DELETE, "jobs/job-1", move || {
            let mut job = there.get("jobs", "a", "job-1").unwrap();
            change(&mut job);
            there.put("jobs", job);
        });
        let (report, text) = run(&apiserver, 500, DryRun::None).await;
        assert!(line_of(&text, "job-1").ends_with(&format!("  {line_end}")), "{what}: {text}");
        assert_eq!(names(&apiserver).contains("job-1"), stays, "{what}");
        assert!(!names(&apiserver).contains("job-0"), "{what}: the others are deleted");
        assert_eq!(report.failed, 0, "{what}");
    }
}

#[tokio::test]
async fn a_job_that_keeps_changing_is_reported_and_kept() {
    let apiserver = cluster(&[of_x(1), of_x(2)]);
    for _ in 0..10 {
        let there = apiserver.clone();
        apiserver.before(Method::DELETE, "jobs/job-0", move || {
            let job = there.get("jobs", "a", "job-0").unwrap();
            there.put("jobs", job);
        });
    }
    let (report, text) = run(&apiserver, 500, DryRun::None).await;
    assert!(
        line_of(&text, "job-0").ends_with("FAILED: the Job keeps changing: run the command again"),
        "{text}"
    );
    assert_eq!((report.failed, names(&apiserver).len()), (1, 2));
}

#[tokio::test]
async fn nothing_of_a_group_is_deleted_if_its_newest_job_has_vanished() {
    let apiserver = cluster(&[of_x(1), of_x(2), of_x(3)]);
    let there = apiserver.clone();
    apiserver.before(Method::GET, "jobs/job-2", move || there.remove("jobs", "a", "job-2"));
    let (report, text) = run(&apiserver, 500, DryRun::None).await;
    assert_eq!(report, PruneReport { groups: 1, purged: 0, skipped: 3, failed: 0, vanished: 1 });
    assert_eq!(names(&apiserver), BTreeSet::from(["job-0".to_owned(), "job-1".to_owned()]));
    assert!(
        line_of(&text, "job-0")
            .ends_with("job-2, which was to stay, was deleted meanwhile: run the command again")
    );
    assert!(text.contains("1 groups changed meanwhile"), "{text}");
}

#[tokio::test]
async fn the_jobs_that_stay_are_read_once_however_many_pages_a_group_spans() {
    // Each page has one Job of each of two groups; their newest Jobs come last.
    let plans: Vec<JobPlan> =
        (0..16).map(|n| JobPlan { group: Some(["x", "y"][n % 2]), ..of_x(n as u8 / 2) }).collect();
    let apiserver = cluster(&plans);
    let gets = Arc::new(AtomicUsize::new(0));
    for n in (0..16).flat_map(|n| [n; 3]) {
        let gets = gets.clone();
        apiserver
            .before(Method::GET, &format!("jobs/job-{n}"), move || _ = gets.fetch_add(1, Ordering::Relaxed));
    }
    let (report, text) = run(&apiserver, 2, DryRun::None).await;
    assert_eq!((report.groups, report.purged), (2, 14), "{text}");
    assert_eq!(gets.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_group_that_is_deleted_while_it_is_pruned_is_no_failure() {
    let apiserver = cluster(&[of_x(1), of_x(2), of_x(3)]);
    let there = apiserver.clone();
    apiserver.before(Method::DELETE, "jobs/job-", move || {
        for job in ["job-0", "job-1", "job-2"] {
            there.remove("jobs", "a", job);
        }
    });
    let (report, text) = run(&apiserver, 500, DryRun::None).await;
    assert_eq!((report.purged, report.failed), (2, 0), "{text}");
    assert!(line_of(&text, "job-1").ends_with("SUCCESS: already deleted"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn expired_lists_and_an_overloaded_apiserver_are_retried() {
    let plans: Vec<JobPlan> = (0..30).map(|n| of_x(n % 6)).collect();
    for with_token in [true, false] {
        let apiserver = cluster(&plans);
        apiserver.expire_tokens(10, with_token);
        // The third write fails and is retried.
        apiserver.fault(3, Fault::Code(429));
        let (report, text) = run(&apiserver, 1, DryRun::None).await;
        assert_eq!((report.purged, report.skipped, report.failed), (29, 1, 0), "{text}");
        assert_eq!(names(&apiserver).len(), 1);
    }
}

#[tokio::test]
async fn the_longest_and_empty_values_and_wrong_clocks_are_handled() {
    let longest = "x".repeat(63);
    let apiserver = Apiserver::default();
    let put = |name: &str, uid: &str, value: &str, created: &str| {
        apiserver.put(
            "jobs",
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {
            "name": name, "namespace": "a", "uid": uid, "creationTimestamp": created, "labels": {KEY: value}},
            "status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
        );
    };
    // One timestamp is decades ahead and one is the epoch: only their order counts.
    put("job-0", "0", &longest, "2099-12-31T23:59:59Z");
    put("job-1", "1", &longest, "1970-01-01T00:00:00Z");
    put("job-2", "2", &longest, "2026-01-01T00:00:00Z");
    put("job-3", "3", "", "2026-01-01T00:00:00Z");
    put("job-4", "4", "", "2026-01-01T00:00:01Z");
    let (report, text) = run(&apiserver, 2, DryRun::None).await;
    assert_eq!(report, PruneReport { groups: 1, purged: 2, skipped: 3, failed: 0, vanished: 0 }, "{text}");
    assert!(names(&apiserver).contains("job-0"));
    assert!(
        line_of(&text, "job-3").starts_with("SKIP") && line_of(&text, "job-3").contains("empty"),
        "{text}"
    );
}

#[tokio::test]
async fn a_job_whose_result_is_not_stored_yet_stays_without_unharvested() {
    let annotated = |annotations: &serde_json::Value, labels: &serde_json::Value| {
        let apiserver = cluster(&[of_x(1), of_x(2)]);
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
        let end = if stays { format!("{why}; --unharvested deletes it anyway") } else { "SUCCESS".into() };
        assert!(line.ends_with(&end) && line.starts_with("SKIP") == stays, "{line}");
    }
    let apiserver = annotated(&parked, &json!({}));
    let options = PruneOptions { unharvested: true, ..options(500, KEEP_ONE, DryRun::None) };
    let report = prune(apiserver.client(), &options, &mut Vec::new()).await.unwrap();
    assert_eq!((report.purged, names(&apiserver).contains("job-0")), (1, false));
}

#[tokio::test]
async fn an_invalid_label_key_is_an_error() {
    let options = PruneOptions { group_label: "a b".into(), ..options(1, KEEP_ONE, DryRun::None) };
    let error = prune(Apiserver::default().client(), &options, &mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("`a b` is not a label key"), "{error}");
}
