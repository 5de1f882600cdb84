//! Rounds in terms of Jobs: which Jobs take a slot in which scope, and how refusals are explained.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{cluster_policy, policy};
use jiff::{SignedDuration, Timestamp};
use job_handler_shared::{
    job::{
        group::group_of,
        scope::without_group_label,
        snapshot::{Finished, JobSnapshot, Outcome},
    },
    keys,
    ledger::crd::JobLedgerSpec,
    policy::{effective::EffectivePolicy, parsed::Policy, reference::Labels, set::PolicySet},
};
use job_handler_webhook::{
    ledger::{
        ledger_id::LedgerId,
        resolve::ViewSource,
        round::{RoundSources, decide_round},
        scope_cache::ScopeCache,
    },
    limit::{Attempt, EarlierSlots, Verdict, failure_backoff, scopes::LimitRules},
};
use rstest::rstest;
use serde_json::json;

fn now() -> Timestamp {
    common::NOW.parse().unwrap()
}

fn minutes_ago(minutes: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_mins(minutes)).unwrap()
}

fn job(name: &str) -> JobSnapshot {
    JobSnapshot {
        namespace: "ci".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        resource_version: "100".into(),
        created: minutes_ago(5),
        labels: [("app".to_owned(), "build".to_owned())].into(),
        ..JobSnapshot::default()
    }
}

fn labelled(name: &str, labels: &[(&str, &str)]) -> JobSnapshot {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    JobSnapshot { labels, ..job(name) }
}

fn ended(name: &str, outcome: Outcome, minutes: i64) -> JobSnapshot {
    let at = minutes_ago(minutes);
    JobSnapshot {
        finished: Some(Finished { outcome, reason: String::new(), message: String::new(), at }),
        labels: [("app".to_owned(), "build".to_owned()), (keys::GROUP.to_owned(), "build".to_owned())].into(),
        ..job(name)
    }
}

fn create(job: &JobSnapshot) -> Attempt {
    Attempt {
        uid: format!("request-{}", job.uid),
        job: job.clone(),
        from: None,
        earlier_slots: EarlierSlots::Nothing,
        dry_run: false,
        probe: false,
        answer_by: Instant::now() + Duration::from_secs(10),
    }
}

fn start(job: &JobSnapshot) -> Attempt {
    Attempt { from: Some(job.resource_version.clone()), ..create(job) }
}

/// A ledger under fixed policies.
struct TestLedger {
    set: PolicySet,
    id: LedgerId,
    spec: JobLedgerSpec,
}

impl TestLedger {
    fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let id = LedgerId::Namespace("ci".into());
        Self { set: PolicySet::new(policies), id, spec: JobLedgerSpec::empty() }
    }

    fn few(max: u32) -> Self {
        Self::new([policy(
            "builds",
            json!({"limits": [{"name": "concurrent-builds", "maxActiveJobs": max}]}),
        )])
    }

    /// Runs a round over a LIST of these Jobs and stores its decision.
    fn decide(&mut self, jobs: &[JobSnapshot], attempts: &[Attempt]) -> Vec<Verdict> {
        let namespaces = |_: &str| Some(Arc::new(Labels::new()));
        let none = BTreeSet::new();
        let jobs: Vec<_> = jobs.iter().cloned().map(Arc::new).collect();
        let rules = LimitRules { policies: &self.set, namespaces: &namespaces };
        let (contents, mut cache) = (self.spec.contents().unwrap(), ScopeCache::default());
        let tried: HashSet<&str> = contents.attempts().map(|(_, _, granted)| &*granted.job_uid).collect();
        let groups =
            attempts.iter().filter_map(|attempt| failure_backoff::group(rules, &attempt.job)).collect();
        let sources = RoundSources {
            rules,
            id: &self.id,
            spec: &self.spec,
            contents: &contents,
            view_source: ViewSource::List,
            observed: &cache.observe(rules, &self.id, &jobs, &tried),
            runs: &cache.finished_runs(rules, &jobs, &groups),
            deleted: &[],
            expired: &none,
            unstored: &BTreeMap::new(),
            revoked: &none,
            forgotten: &BTreeSet::new(),
            refusals_by: None,
            now: now(),
        };
        let (verdicts, decided) = decide_round(sources, &attempts.iter().collect::<Vec<_>>()).unwrap();
        self.spec.set(&decided.contents);
        verdicts
    }

    fn pending(&self) -> usize {
        self.spec.contents().unwrap().attempts().count()
    }
}

fn is_granted(verdicts: &[Verdict]) -> Vec<bool> {
    verdicts.iter().map(|verdict| *verdict == Verdict::Granted).collect()
}

fn message(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Refused(refused) => &refused.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_slot_goes_to_the_first_request_and_the_refusal_explains_it() {
    let mut ledger = TestLedger::few(10);
    let mut running: Vec<_> = (0..9).map(|n| job(&format!("r{n}"))).collect();
    (running[3].created, running[3].name) = (minutes_ago(12), "build-a".into());
    (running[5].created, running[5].name) = (minutes_ago(9), "build-b".into());
    let view = &running[..];
    let verdicts = ledger.decide(view, &[create(&job("x")), create(&job("y"))]);
    assert_eq!(is_granted(&verdicts), [true, false]);
    assert_eq!(
        message(&verdicts[1]),
        "concurrent job limit reached: 10 active jobs, max allowed: 10 (limit \"concurrent-builds\" of JobPolicy \
         ci/builds, counted per namespace; 9 running, 1 just admitted; oldest: build-a 12m, build-b 9m)"
    );
    let Verdict::Refused(refused) = &verdicts[1] else { panic!() };
    assert_eq!(
        (refused.audit["active"].as_str(), refused.audit["limit"].as_str()),
        ("10", "concurrent-builds")
    );
}

#[test]
fn inactive_jobs_take_no_slot() {
    let mut ledger = TestLedger::few(1);
    let suspended = JobSnapshot { suspended: true, ..job("s") };
    let other = JobSnapshot { namespace: "elsewhere".into(), ..job("o") };
    let view = &[suspended, ended("f", Outcome::Completed, 1), other][..];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("x"))])), [true]);
    // Suspended, but its pods still terminate.
    let mut ledger = TestLedger::few(1);
    let leaving = JobSnapshot { suspended: true, terminating_pods: 1, ..job("s") };
    let deleted = JobSnapshot { deleting_since: Some(now()), ..job("d") };
    for holder in [leaving, deleted] {
        let view = &[holder][..];
        assert_eq!(is_granted(&ledger.decide(view, &[create(&job("x"))])), [false]);
    }
}

#[test]
fn a_name_that_counts_already_is_granted() {
    let mut ledger = TestLedger::few(1);
    let view = &[job("a")][..];
    let again = JobSnapshot { uid: "another".into(), ..job("a") };
    assert_eq!(is_granted(&ledger.decide(view, &[create(&again), create(&job("b"))])), [true, false]);
}

#[test]
fn a_grant_counts_until_its_job_is_observed() {
    let mut ledger = TestLedger::few(1);
    let view = &[];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("a"))])), [true]);
    let view = &[];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("b"))])), [false], "the Job is not stored yet");
    let view = &[job("a")][..];
    assert_eq!(
        is_granted(&ledger.decide(view, &[create(&job("c"))])),
        [false],
        "the Job is stored and active"
    );
    let view = &[ended("a", Outcome::Completed, 0)][..];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("d"))])), [true], "finished");
    // The attempt of `a` is resolved; only that of `d` remains.
    assert_eq!(ledger.pending(), 1);
}

#[test]
fn an_unsuspend_counts_until_a_newer_version_is_observed() {
    let mut ledger = TestLedger::few(1);
    let waits = JobSnapshot { suspended: true, ..job("a") };
    let started = JobSnapshot { suspended: false, ..waits.clone() };
    let view = std::slice::from_ref(&waits);
    assert_eq!(is_granted(&ledger.decide(view, &[start(&started)])), [true]);
    let view = std::slice::from_ref(&waits);
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("b"))])), [false], "observed as it was before");
    let again = JobSnapshot { resource_version: "101".into(), ..waits };
    let view = &[again][..];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("c"))])), [true], "started and suspended again");
    // A later attempt is decided anew.
    let view = &[job("c")][..];
    assert_eq!(is_granted(&ledger.decide(view, &[start(&started)])), [false]);
    let view = &[];
    assert_eq!(is_granted(&ledger.decide(view, &[start(&started)])), [true]);
}

#[test]
fn a_dry_run_gets_the_verdict_and_takes_no_slot() {
    let mut ledger = TestLedger::few(1);
    let view = &[];
    let dry = Attempt { dry_run: true, ..create(&job("a")) };
    assert_eq!(
        is_granted(&ledger.decide(view, &[dry.clone(), dry, create(&job("b")), create(&job("c"))])),
        [true, true, true, false]
    );
}

fn deduplicating() -> TestLedger {
    TestLedger::new([policy(
        "builds",
        json!({
            "group": {"type": "Labels", "labelKeys": ["id"]},
            "limits": [{"name": "all", "maxActiveJobs": 2}, {"name": "one-per-parser", "maxActiveJobs": 1, "scope": "Group"}],
        }),
    )])
}

#[test]
fn a_job_that_changes_its_group_holds_the_slot_of_the_old_one_only() {
    let mut ledger = deduplicating();
    let before = labelled("a", &[("id", "7")]);
    let after = JobSnapshot { labels: labelled("a", &[("id", "8")]).labels, ..before.clone() };
    let earlier_slots = EarlierSlots::Left(Box::new(before.clone()));
    let moves = Attempt { earlier_slots, ..start(&after) };
    assert_eq!(is_granted(&ledger.decide(&[before], &[moves])), [true]);
    let again = ["7", "8", "9"].map(|id| create(&labelled(&format!("new-{id}"), &[("id", id)])));
    assert_eq!(
        is_granted(&ledger.decide(&[after], &again)),
        [false, false, true],
        "it counts once among all"
    );
}

#[test]
fn a_duplicate_refusal_names_the_active_job() {
    let mut ledger = deduplicating();
    let running = [labelled("first", &[("id", "7")]), labelled("none", &[])];
    let view = &running[..];
    let verdicts = ledger.decide(view, &[create(&labelled("again", &[("id", "7")]))]);
    assert_eq!(
        message(&verdicts[0]),
        "duplicate job: first of group 7 is still active (created 5m ago); max allowed: 1 per group (limit \
         \"one-per-parser\" of JobPolicy ci/builds)",
        "both limits are full; the more specific one answers"
    );
    let mut ledger = deduplicating();
    let view = &[];
    let none = [create(&labelled("a", &[])), create(&labelled("b", &[])), create(&labelled("c", &[]))];
    assert_eq!(
        is_granted(&ledger.decide(view, &none)),
        [true, true, false],
        "without a group only the other limit"
    );
}

#[test]
fn a_forged_group_label_joins_no_group() {
    let mut ledger = deduplicating();
    let view = &[labelled("first", &[("id", "7")])][..];
    let forged = [
        labelled("x", &[("id", "7"), ("job-handler/group", "8")]),
        labelled("y", &[("id", "8"), ("job-handler/group", "7")]),
    ];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&forged[0]), create(&forged[1])])), [false, true]);
}

#[test]
fn a_relabelled_job_needs_a_slot_in_its_new_group() {
    let mut ledger = deduplicating();
    let moving = labelled("moves", &[]);
    let view = &[labelled("first", &[("id", "7")]), moving][..];
    let into = |id: &str| start(&labelled("moves", &[("id", id)]));
    assert_eq!(is_granted(&ledger.decide(view, &[into("7"), into("8")])), [false, true]);
}

#[test]
fn cluster_limits_count_every_namespace_in_their_own_ledger() {
    let limit = json!({"limits": [{"name": "wide", "maxActiveJobs": 2, "scope": "Cluster"}]});
    let mut ledger = TestLedger::new([cluster_policy("all", limit)]);
    let elsewhere = JobSnapshot { namespace: "prod".into(), ..job("p") };
    let view = &[elsewhere][..];
    assert_eq!(
        is_granted(&ledger.decide(view, &[create(&job("a")), create(&job("b")), create(&job("c"))])),
        [true; 3]
    );
    assert_eq!(ledger.pending(), 0, "a namespace's ledger records no attempts of cluster limits");
    ledger.id = LedgerId::Cluster;
    let verdicts = ledger.decide(view, &[create(&job("a")), create(&job("b"))]);
    assert_eq!(is_granted(&verdicts), [true, false]);
    assert!(
        message(&verdicts[1])
            .contains("counted over the cluster; 1 running, 1 just admitted; oldest: prod/p 5m)")
    );
}

#[test]
fn limits_in_mode_warn_refuse_nothing() {
    let warn = json!({"mode": "Warn", "limits": [{"name": "none", "maxActiveJobs": 0}]});
    let mut ledger = TestLedger::new([policy("w", warn)]);
    let view = &[];
    assert_eq!(is_granted(&ledger.decide(view, &[create(&job("a"))])), [true]);
}

/// (outcomes of the group's Jobs and how many minutes ago) -> whether a Job may start.
#[rstest]
#[case(&[(Outcome::Failed, 4)], false)]
#[case(&[(Outcome::Failed, 6)], true)]
#[case(&[(Outcome::Failed, 9), (Outcome::Failed, 20)], false)]
#[case(&[(Outcome::Failed, 11), (Outcome::Failed, 20)], true)]
#[case(&[(Outcome::Failed, 16), (Outcome::Failed, 20), (Outcome::Failed, 30), (Outcome::Failed, 40)], true)]
#[case(&[(Outcome::Failed, 14), (Outcome::Failed, 20), (Outcome::Failed, 30), (Outcome::Failed, 40)], false)]
#[case(&[(Outcome::Completed, 1), (Outcome::Failed, 2)], true)]
#[case(&[(Outcome::Failed, 4), (Outcome::Completed, 5), (Outcome::Failed, 6)], false)]
fn a_group_waits_after_failures(#[case] ends: &[(Outcome, i64)], #[case] allowed: bool) {
    let rules = json!({"group": {"type": "Labels", "labelKeys": ["app"]},
        "failureBackoff": {"initialSeconds": 300, "multiplier": 2, "maxSeconds": 900}});
    let mut ledger = TestLedger::new([policy("builds", rules)]);
    let jobs: Vec<_> =
        ends.iter().enumerate().map(|(n, (outcome, at))| ended(&format!("j{n}"), *outcome, *at)).collect();
    let view = &jobs[..];
    let verdicts = ledger.decide(view, &[create(&job("next")), create(&labelled("other", &[("app", "x")]))]);
    assert_eq!(is_granted(&verdicts), [allowed, true]);
    if !allowed {
        let message = message(&verdicts[0]);
        assert!(message.starts_with("failure backoff: group build failed"), "{message}");
        assert!(
            message.contains("at 2026-01-01T12:0") && message.contains("JobPolicy ci/builds"),
            "{message}"
        );
    }
}

/// Counting finds scopes without combining policies; both must agree.
#[test]
fn scopes_agree_with_the_combination_of_policies() {
    let limit = |name: &str, scope: &str| json!({"name": name, "maxActiveJobs": 1, "scope": scope});
    let set = PolicySet::new([
        policy(
            "b",
            json!({"limits": [limit("n", "Namespace")], "jobSelector": {"matchLabels": {"app": "build"}}}),
        ),
        policy(
            "c",
            json!({"group": {"type": "Labels", "labelKeys": ["app"]}, "limits": [limit("g", "Group")]}),
        ),
        policy("d", json!({"group": {"type": "Labels", "labelKeys": ["id"]}, "mode": "Warn"})),
        cluster_policy("a", json!({"group": {"type": "Owner"}, "limits": [limit("w", "Cluster")]})),
    ]);
    let namespaces = |_: &str| Some(Arc::new(Labels::new()));
    let rules = LimitRules { policies: &set, namespaces: &namespaces };
    for job in
        [labelled("a", &[("app", "build"), ("id", "1")]), labelled("b", &[("app", "x")]), labelled("c", &[])]
    {
        let effective = EffectivePolicy::combine(rules.matching(&job), &job.labels);
        let group = effective.group.as_ref().and_then(|spec| {
            group_of(&spec.value, &without_group_label(&job.labels), job.owner.as_ref()).ok()
        });
        let mut limits: Vec<_> = effective.limits.iter().map(|limit| limit.value.name.clone()).collect();
        if group.is_none() {
            limits.retain(|name| name != "g");
        }
        limits.sort();
        let mut scopes: Vec<_> = rules.scopes(&job).into_iter().map(|(scope, _)| scope.limit).collect();
        scopes.sort();
        assert_eq!(scopes, limits);
    }
}
