//! Limiters of several replicas on one ledger, against an in-memory apiserver: bursts, crashes, writes whose answer is
//! lost, ledgers that are missing or unreadable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod apiserver;
mod common;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use apiserver::{LimitsApiserver, TestReplica, attempt, empty, eventually, replica, spread, why};
use common::{cluster_policy, policy};
use futures::{future::join_all, poll};
use job_handler_shared::policy::{parsed::Policy, set::PolicySet};
use job_handler_webhook::{
    limit::{Attempt, Limiter, Verdict},
    presence_lease::WithheldPolicies,
};
use kube::ResourceExt;
use rstest::rstest;
use serde_json::{Value, json};

fn few(max: u32) -> Arc<Policy> {
    policy("builds", json!({"limits": [{"name": "few", "maxActiveJobs": max}]}))
}

/// Each client retries until its Job is stored, which then runs for a while.
async fn burst(apiserver: &Arc<LimitsApiserver>, replicas: &[TestReplica], creates: usize) {
    let clients = (0..creates).map(|n| {
        let limiter = replicas[n % replicas.len()].limiter.clone();
        let key = format!("{}/j{n}", if n % 3 == 0 { "qa" } else { "ci" });
        async move {
            for retry in 0usize.. {
                let uid = format!("{n}-{retry}");
                if limiter.admit(attempt(&key, &uid)).await == Verdict::Granted {
                    tokio::time::sleep(spread(n, 23)).await;
                    assert!(apiserver.store(&key, &uid));
                    tokio::time::sleep(spread(n + 5, 17)).await;
                    apiserver.finish(&key);
                    return;
                }
                tokio::time::sleep(spread(n + retry, 31)).await;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(90), join_all(clients)).await.expect("every client is served");
}

#[rstest]
#[case::calm(0)]
#[case::answers_are_lost(3)]
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_over_three_replicas_never_exceeds_a_limit_of_the_cluster(#[case] lose_answers: usize) {
    const MAX: usize = 4;
    let apiserver = LimitsApiserver::new(4).losing(lose_answers);
    let apiserver = Arc::new(
        ["ci", "qa", "cluster.job-handler.io"]
            .into_iter()
            .fold(apiserver, |apiserver, name| apiserver.with_ledger(name, empty())),
    );
    let limits = json!({"limits": [
        {"name": "all", "maxActiveJobs": MAX, "scope": "Cluster"}, {"name": "each", "maxActiveJobs": MAX}]});
    let policies = [cluster_policy("builds", limits)];
    let replicas: Vec<_> = (0..3).map(|_| replica(&apiserver, &policies)).collect();
    burst(&apiserver, &replicas, 45).await;
    let most = apiserver.most_active();
    assert!((1..=MAX).contains(&most), "{most} at a limit of {MAX}");
    // Housekeeping removes resolved attempts without a request.
    let ledgers = ["ci", "qa", "cluster.job-handler.io"];
    eventually("the ledgers to be empty", || ledgers.iter().all(|name| apiserver.pending(name) == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_whose_writes_conflict_take_turns() {
    let apiserver = Arc::new(LimitsApiserver::new(4).with_ledger("ci", empty()));
    let replicas = join_all((0..3).map(|_| replica(&apiserver, &[few(1000)]).ready())).await;
    let contended = || {
        replicas.iter().filter(|replica| replica.limiter.context().known_ledgers.is_contended("ci")).count()
    };
    let writers = || {
        let known = replicas[0].limiter.context().known_ledgers.latest("ci").unwrap();
        let writers = known.ledger.annotations().get("job-handler/writers").cloned();
        writers.unwrap_or_default().split(' ').map(str::to_owned).collect::<BTreeSet<String>>()
    };
    // One after the other: no write conflicts, so no replica waits for another.
    for (n, replica) in replicas.iter().enumerate() {
        let verdict = replica.limiter.admit(attempt(&format!("ci/calm-{n}"), &format!("calm-{n}"))).await;
        assert_eq!(verdict, Verdict::Granted);
        let pending = |replica: &TestReplica| {
            let known = replica.limiter.context().known_ledgers.latest("ci");
            known.map_or(0, |known| known.contents.pending.len())
        };
        eventually("all to know of it", || replicas.iter().all(|replica| pending(replica) > n)).await;
    }
    assert_eq!((contended(), writers().len()), (0, 3));

    // All at once, until two of them have lost a write.
    for n in 0.. {
        assert!(n < 1000, "no two replicas ever conflicted");
        join_all(replicas.iter().enumerate().map(|(m, replica)| {
            let (uid, apiserver) = (format!("{n}-{m}"), &apiserver);
            async move {
                let key = format!("ci/{uid}");
                assert_eq!(replica.limiter.admit(attempt(&key, &uid)).await, Verdict::Granted);
                assert!(apiserver.store(&key, &uid));
                apiserver.finish(&key);
            }
        }))
        .await;
        let late = |replica: &&TestReplica| replica.metric("job_handler_limit_ledger_conflicts_total ") > 0;
        if replicas.iter().filter(late).count() > 1 && contended() > 1 {
            break;
        }
    }
    let expected: BTreeSet<String> = replicas
        .iter()
        .map(|replica| replica.limiter.context().ledger_client.writer_id().to_owned())
        .collect();
    assert!(writers().is_subset(&expected), "the ledger names its last writers");
    replicas.iter().for_each(|replica| replica.clock.advance(Duration::from_secs(6)));
    assert_eq!(contended(), 0, "a ledger without conflicts is no longer contended");
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_of_a_crashed_replica_still_count() {
    let apiserver = Arc::new(LimitsApiserver::new(2).with_ledger("ci", empty()));
    let dying = replica(&apiserver, &[few(1)]);
    assert_eq!(dying.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    drop(dying);
    let other = replica(&apiserver, &[few(1)]);
    let refused = why(other.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("1 just admitted"), "{refused}");
    assert!(apiserver.store("ci/a", "a"));
    let refused = why(other.limiter.admit(attempt("ci/b", "b2")).await);
    assert!(refused.contains("1 running; oldest: a"), "{refused}");
    eventually("the attempt to be removed", || apiserver.pending("ci") == 0).await;
    apiserver.finish("ci/a");
    assert_eq!(other.limiter.admit(attempt("ci/b", "b3")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_writes_nothing_and_the_grant_of_a_gone_caller_is_revoked() {
    let apiserver = Arc::new(LimitsApiserver::new(200).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    let dry = Attempt { dry_run: true, ..attempt("ci/dry", "dry") };
    assert_eq!(replica.limiter.admit(dry).await, Verdict::Granted);
    assert_eq!(apiserver.ledger_writes(), 0);
    // Dropped while the ledger is being written.
    let asks = replica.limiter.admit(attempt("ci/gone", "gone"));
    assert!(tokio::time::timeout(Duration::from_millis(100), asks).await.is_err());
    let deadline = Instant::now() + Duration::from_secs(20);
    while replica.limiter.admit(attempt("ci/x", "x")).await != Verdict::Granted {
        assert!(Instant::now() < deadline, "its slot is not freed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_the_cluster_leaves_no_grant_in_the_namespace() {
    let apiserver =
        LimitsApiserver::new(1).with_ledger("ci", empty()).with_ledger("cluster.job-handler.io", empty());
    let apiserver = Arc::new(apiserver);
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 0, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits), few(1)]);
    let refused = why(replica.limiter.admit(attempt("ci/a", "a")).await);
    assert!(refused.contains("counted over the cluster"), "{refused}");
    // The apiserver asks for each of the two policies, and so the refusal is recorded in the cluster's ledger.
    assert_eq!((apiserver.pending("ci"), apiserver.ledger_writes()), (0, 1));
}

#[rstest]
#[case::newer(json!({"format": 7}), "has format 7, this version knows 1")]
#[case::garbage(json!({"format": 1, "pending": 5}), "spec.pending is malformed")]
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_ledger_grants_nothing(#[case] spec: Value, #[case] text: &str) {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", spec.clone()));
    let replica = replica(&apiserver, &[few(5)]);
    let refused = why(replica.limiter.admit(attempt("ci/a", "a")).await);
    assert!(refused.contains(text), "{refused}");
    assert_eq!(apiserver.ledger("ci")["spec"], spec, "the ledger is unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_grants_again_once_it_is_repaired() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(5)]).ready().await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    apiserver.put_ledger("ci", json!({"format": 1, "observedThrough": "far"}));
    let refused = why(replica.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("spec.observedThrough") && refused.contains("delete the ledger"), "{refused}");
    apiserver.put_ledger("ci", empty());
    assert_eq!(replica.limiter.admit(attempt("ci/c", "c")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_deleted_by_hand_grants_nothing_for_a_minute() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(5)]).ready().await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    let mut deletions = replica.limiter.changes();
    apiserver.delete_ledger("ci");
    let refused = why(replica.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("the JobLedger ci is missing"), "{refused}");
    assert!(apiserver.ledgers().is_empty());
    // The minute counts from when the watch shows the deletion, after the write before.
    deletions.changed().await.unwrap();
    // Only the monotonic clock counts.
    replica.clock.advance(Duration::from_secs(61));
    assert_eq!(replica.limiter.admit(attempt("ci/b", "b2")).await, Verdict::Granted);
}

/// Policies and namespaces that are older than the watch may have granted attempts a moment ago.
#[tokio::test(flavor = "multi_thread")]
async fn ledgers_are_created_ahead_once_no_older_grant_can_exist() {
    let apiserver = Arc::new(LimitsApiserver::new(0));
    let limits = json!({"limits": [{"name": "few", "maxActiveJobs": 5}, {"name": "all", "maxActiveJobs": 5,
        "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits)]).ready().await;
    let refused = why(replica.limiter.admit(attempt("ci/a", "a")).await);
    assert!(refused.contains("is missing"), "{refused}");
    replica.clock.advance(Duration::from_secs(61));
    let made = || apiserver.ledgers();
    eventually("the ledgers", || made() == ["ci", "cluster.job-handler.io", "qa"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_never_granted_do_not_delay_a_ledger() {
    let apiserver = Arc::new(LimitsApiserver::new(0));
    let defaults = cluster_policy("defaults", json!({"stamp": {"labels": {"a": "b"}}}));
    let mut elsewhere =
        (*policy("elsewhere", json!({"limits": [{"name": "few", "maxActiveJobs": 5}]}))).clone();
    elsewhere.reference.namespace = Some("qa".to_owned());
    let mut policies = vec![defaults, Arc::new(elsewhere)];
    let replica = replica(&apiserver, &policies).ready().await;
    policies.push(few(1));
    replica.policies.replace_fixed(PolicySet::new(policies));
    let made = || apiserver.ledgers();
    eventually("its ledger", || made() == ["ci"]).await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_costs_one_write_and_no_read() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(100)]).ready().await;
    for n in 0..10 {
        let key = format!("ci/j{n}");
        assert_eq!(replica.limiter.admit(attempt(&key, &key)).await, Verdict::Granted);
        apiserver.store(&key, &key);
    }
    assert_eq!(replica.metric("job_handler_limit_ledger_writes_total"), 10);
    assert_eq!(replica.metric("job_handler_limit_consistent_reads_total"), 0);
    eventually("the last ones to be removed", || apiserver.pending("ci") == 0).await;
    assert_eq!(replica.metric("job_handler_limit_ledger_removals_total"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_share_writes() {
    let apiserver = Arc::new(LimitsApiserver::new(6).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(100)]).ready().await;
    let asks = (0..100).map(|n| {
        let limiter = replica.limiter.clone();
        async move { limiter.admit(attempt(&format!("ci/j{n}"), &format!("{n}"))).await }
    });
    assert!(join_all(asks).await.iter().all(|verdict| *verdict == Verdict::Granted));
    let writes = apiserver.ledger_writes();
    assert!(writes <= 30, "{writes} writes for 100 grants");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_uses_the_current_jobs_when_the_watch_lags() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    apiserver.store("ci/a", "a");
    eventually("the watch to deliver it", || apiserver.pending("ci") == 0).await;
    apiserver.report("jobs", false);
    apiserver.finish("ci/a");
    assert_eq!(replica.limiter.admit(attempt("ci/b", "b")).await, Verdict::Granted);
    apiserver.store("ci/b", "b");
    let refused = why(replica.limiter.admit(attempt("ci/c", "c")).await);
    assert!(refused.contains("1 running; oldest: b"), "{refused}");
    assert!(replica.metric("job_handler_limit_consistent_reads_total") >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_deleted_between_two_rounds_frees_its_slot() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    let come_and_go = |key: &str, uid: &str| {
        assert!(apiserver.store(key, uid));
        apiserver.finish(key);
        apiserver.delete_job(key);
    };
    // The watch delivers all events at once, so that no round sees the Job.
    apiserver.report("jobs", false);
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    come_and_go("ci/a", "a");
    apiserver.report("jobs", true);
    // Less than an attempt takes to expire. The watch may deliver the events after the first request.
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut retry = 0;
    loop {
        let uid = format!("b{retry}");
        match replica.limiter.admit(attempt("ci/b", &uid)).await {
            Verdict::Granted => break come_and_go("ci/b", &uid),
            refused => assert!(Instant::now() < deadline, "{}", why(refused)),
        }
        retry += 1;
    }
    let seen: u64 = apiserver.ledger("ci")["spec"]["observedThrough"].as_u64().unwrap();
    assert!(seen > 0, "a decision without the attempt needs a view in which its Job is gone");
    eventually("housekeeping to remove its attempt", || apiserver.pending("ci") == 0).await;
    assert_eq!(replica.metric("job_handler_limit_ledger_removals_total"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_cache_older_than_the_ledger_is_not_used() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    apiserver.report("jobs", false);
    apiserver.store("ci/a", "a");
    let version = apiserver.version();
    apiserver.put_ledger("ci", json!({"format": 1, "observedThrough": version}));
    let refused = why(replica.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("1 running; oldest: a"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relist_after_410_shows_the_current_jobs() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(3)]).ready().await;
    for name in ["a", "b"] {
        let key = format!("ci/{name}");
        assert_eq!(replica.limiter.admit(attempt(&key, name)).await, Verdict::Granted);
        apiserver.store(&key, name);
    }
    replica.watched(&apiserver).await;
    apiserver.report("jobs", false);
    apiserver.delete_job("ci/a");
    apiserver.store("ci/c", "c");
    apiserver.forget("jobs");
    apiserver.report("jobs", true);
    replica.watched(&apiserver).await;
    assert_eq!(replica.limiter.admit(attempt("ci/d", "d")).await, Verdict::Granted);
    apiserver.store("ci/d", "d");
    let refused = why(replica.limiter.admit(attempt("ci/e", "e")).await);
    assert!(refused.contains("3 running"), "{refused}");
}

/// Requests that arrive during a fresh read share the next one.
#[tokio::test(flavor = "multi_thread")]
async fn refused_requests_share_a_fresh_read_that_began_after_they_arrived() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    apiserver.store("ci/a", "a");
    replica.watched(&apiserver).await;
    let fresh_reads = || replica.metric("job_handler_limit_consistent_reads_total");
    apiserver.hold_reads(true);
    let first = tokio::spawn({
        let limiter = replica.limiter.clone();
        async move { limiter.admit(attempt("ci/j0", "0")).await }
    });
    eventually("its fresh read", || apiserver.job_gets() == 1).await;
    // That read shows the Job as active. Requests that arrive now must not be refused by it.
    apiserver.report("jobs", false);
    apiserver.finish("ci/a");
    let ask = |n: usize| replica.limiter.admit(attempt(&format!("ci/j{n}"), &format!("{n}")));
    let mut rest: Vec<_> = (1..50).map(ask).collect();
    for request in &mut rest {
        // The first poll sends the request to the ledger's actor.
        assert!(poll!(request).is_pending());
    }
    apiserver.hold_reads(false);
    assert!(why(first.await.unwrap()).contains("oldest: a"));
    let mut granted = 0;
    for verdict in join_all(rest).await {
        match verdict {
            Verdict::Granted => granted += 1,
            refused => assert!(why(refused).contains("1 just admitted")),
        }
    }
    assert_eq!(granted, 1);
    assert!((2..=5).contains(&fresh_reads()), "{} fresh reads for 50 requests", fresh_reads());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_few_jobs_fetches_them_and_one_by_many_lists_all() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(16)]).ready().await;
    for n in 0..15 {
        apiserver.store(&format!("ci/r{n}"), &format!("r{n}"));
    }
    replica.watched(&apiserver).await;
    assert_eq!(replica.limiter.admit(attempt("ci/on-its-way", "on-its-way")).await, Verdict::Granted);
    let begun = apiserver.job_lists();
    let refused = why(replica.limiter.admit(attempt("ci/x", "x")).await);
    assert!(refused.contains("15 running, 1 just admitted"), "{refused}");
    assert_eq!((apiserver.job_lists(), apiserver.job_gets()), (begun, 16));
    // The watch does not deliver a Job without a grant, and one that finished.
    apiserver.report("jobs", false);
    apiserver.finish("ci/r0");
    apiserver.store("ci/by-no-grant", "by-no-grant");
    let refused = why(replica.limiter.admit(attempt("ci/y", "y")).await);
    assert!(refused.contains("by-no-grant"), "{refused}");
    assert_eq!(apiserver.job_lists(), begun + 1);
    apiserver.report("jobs", true);
    apiserver.store("ci/one-too-many", "one-too-many");
    let deadline = Instant::now() + Duration::from_secs(60);
    for retry in 0.. {
        let lists = apiserver.job_lists();
        let refused = why(replica.limiter.admit(attempt("ci/z", &format!("z{retry}"))).await);
        if refused.contains("17 active jobs") {
            assert_eq!(apiserver.job_lists(), lists + 1);
            break;
        }
        assert!(Instant::now() < deadline, "{refused}");
    }
}

/// Finished runs of a group are not fetched: only a LIST shows the last one.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_has_just_succeeded_does_not_wait_for_an_earlier_failure() {
    let waits = json!({"group": {"type": "Labels", "labelKeys": ["id"]},
        "failureBackoff": {"initialSeconds": 300, "multiplier": 2, "maxSeconds": 3600, "action": "Reject"},
        "limits": [{"name": "few", "maxActiveJobs": 2}]});
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[policy("builds", waits)]).ready().await;
    let run = |name: &str, condition: &str, ago: i64| {
        let at = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(ago)).unwrap();
        apiserver.store(&format!("ci/{name}"), name);
        apiserver.change_job(&format!("ci/{name}"), |job| {
            job["metadata"]["labels"] = json!({"id": "7", "job-handler/group": "7"});
            job["status"] = json!({"conditions": [
                {"type": condition, "status": "True", "lastTransitionTime": at.to_string()}]});
        });
    };
    let ask = |name: &str| {
        let mut attempt = attempt(&format!("ci/{name}"), name);
        attempt.job.labels.insert("id".into(), "7".into());
        replica.limiter.admit(attempt)
    };
    run("r1", "Failed", 9);
    replica.watched(&apiserver).await;
    let refused = why(ask("a").await);
    assert!(refused.contains("group 7 failed 1 time (last: r1)"), "{refused}");
    apiserver.report("jobs", false);
    run("r2", "Complete", 1);
    assert_eq!(ask("b").await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_many_pending_grants_lists_the_jobs() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(17)]).ready().await;
    for n in 0..17 {
        let granted = replica.limiter.admit(attempt(&format!("ci/g{n}"), &format!("g{n}"))).await;
        assert_eq!(granted, Verdict::Granted);
    }
    let lists = apiserver.job_lists();
    let refused = why(replica.limiter.admit(attempt("ci/x", "x")).await);
    assert!(refused.contains("17 just admitted"), "{refused}");
    assert_eq!((apiserver.job_lists(), apiserver.job_gets()), (lists + 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_reads_no_more_than_twenty_times_a_second() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()).with_ledger("qa", empty()));
    let zero = json!({"limits": [{"name": "none", "maxActiveJobs": 0}]});
    let replica = replica(&apiserver, &[cluster_policy("all", zero)]).ready().await;
    let begun = Instant::now();
    let asks = (0..20).map(|n| {
        let limiter = replica.limiter.clone();
        async move {
            for retry in 0..15 {
                let key = format!("{}/j{n}", if n % 2 == 0 { "ci" } else { "qa" });
                let refused = why(limiter.admit(attempt(&key, &format!("{n}-{retry}"))).await);
                assert!(refused.contains("allowed: 0"), "{refused}");
            }
        }
    });
    join_all(asks).await;
    let reads = replica.metric("job_handler_limit_consistent_reads_total");
    let most = begun.elapsed().as_millis() / 50 + 1;
    assert!(u128::from(reads) <= most, "{reads} reads in {:?}", begun.elapsed());
    let refusals = "job_handler_limit_refusals_total{policy=\"ClusterJobPolicy all\",limit=\"none\"}";
    assert_eq!(replica.metric(refusals), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_webhook_entries_get_the_same_answer_for_one_create() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    apiserver.store("ci/a", "a");
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    let first = replica.limiter.admit(attempt("ci/b", "b")).await;
    apiserver.finish("ci/a");
    // The apiserver denies the create anyway; a grant would hold the slot for a minute.
    let second = Attempt { uid: "of another entry".into(), ..attempt("ci/b", "b") };
    assert_eq!(replica.limiter.admit(second).await, first);
    assert_eq!(replica.limiter.admit(attempt("ci/b", "fresh")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_entries_of_two_policies_get_the_same_answer_from_two_replicas() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    apiserver.store("ci/a", "a");
    let policies = [few(1), policy("more", json!({"limits": [{"name": "many", "maxActiveJobs": 9}]}))];
    let (one, other) =
        tokio::join!(replica(&apiserver, &policies).ready(), replica(&apiserver, &policies).ready());
    let first = one.limiter.admit(attempt("ci/b", "b")).await;
    assert!(matches!(first, Verdict::Refused(_)), "{first:?}");
    apiserver.finish("ci/a");
    let second = Attempt { uid: "of another entry".into(), ..attempt("ci/b", "b") };
    let second = why(other.limiter.admit(second).await);
    assert!(second.contains("for another policy a moment ago"), "{second}");
    assert_eq!(apiserver.pending("ci"), 0);
    assert_eq!(other.limiter.admit(attempt("ci/b", "again")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_under_no_limit_cost_no_call() {
    let apiserver = Arc::new(LimitsApiserver::new(0));
    let stamps = policy("stamps", json!({"stamp": {"labels": {"a": "b"}}}));
    let replica = replica(&apiserver, &[stamps]).ready().await;
    apiserver.refuse_all(Some(500));
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
}

#[rstest]
#[case::throttled(429, "overloaded")]
#[case::failing(500, "")]
#[case::forbidden(403, "cannot write JobLedger")]
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_apiserver_is_reported_and_nothing_is_granted(#[case] code: u16, #[case] text: &str) {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(5)]).ready().await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    apiserver.refuse_all(Some(code));
    let patience = Attempt { answer_by: Instant::now() + Duration::from_secs(3), ..attempt("ci/b", "b") };
    let verdict = replica.limiter.admit(patience).await;
    assert!(matches!(verdict, Verdict::Unavailable { .. }), "{verdict:?}");
    let refused = why(verdict);
    assert!(refused.contains(text), "{refused}");
    apiserver.refuse_all(None);
    assert_eq!(replica.limiter.admit(attempt("ci/c", "c")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_apiserver_is_reported_before_the_caller_gives_up() {
    let apiserver = Arc::new(LimitsApiserver::new(5_000).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(5)]);
    let patience = Attempt { answer_by: Instant::now() + Duration::from_millis(900), ..attempt("ci/x", "x") };
    let refused = why(replica.limiter.admit(patience).await);
    assert!(refused.contains("did not answer in time"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_list_counts() {
    let apiserver = LimitsApiserver::new(0).paged(2);
    let apiserver = Arc::new(apiserver.with_ledger("ci", empty()));
    for n in 0..5 {
        apiserver.store(&format!("ci/r{n}"), &format!("{n}"));
    }
    let replica = replica(&apiserver, &[few(5)]).ready().await;
    let refused = why(replica.limiter.admit(attempt("ci/x", "x")).await);
    assert!(refused.contains("5 active jobs"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_an_unknown_namespace_blocks_cluster_limits() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("cluster.job-handler.io", empty()));
    apiserver.store("new/a", "a");
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 5, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits)]).ready().await;
    let refused = why(replica.limiter.admit(attempt("ci/x", "x")).await);
    assert!(refused.contains("namespace new"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_job_in_an_unknown_namespace_blocks_cluster_limits() {
    let granted = json!({"jobUid": "x", "kind": "create", "revision": "another", "scopes": ["uid-all/all"],
        "since": "2026-11-21T00:00:00Z"});
    let spec = json!({"format": 1, "pending": {"new/x": {"request-of-x": granted}}});
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("cluster.job-handler.io", spec));
    apiserver.store("ci/y", "y");
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 2, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits)]).ready().await;
    apiserver.report("jobs", false);
    apiserver.store("new/x", "x");
    let refused = why(replica.limiter.admit(attempt("ci/r", "r")).await);
    assert!(refused.contains("namespace new"), "{refused}");
}

/// A request arrives while all slots are held, and one becomes free before its fresh read begins. While the Jobs are
/// being fetched, another replica writes the ledger.
#[rstest]
#[case::an_attempt_whose_job_has_finished(json!({"jobUid": "x", "kind": "create", "revision": "another",
    "scopes": ["uid-builds/few"], "since": "2026-11-21T00:00:00Z"}), 0)]
#[case::beyond_what_is_watched(Value::Null, 1000)]
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_written_during_a_fresh_read_refuses_nothing(#[case] granted: Value, #[case] beyond: u64) {
    // The test cannot observe that the request waits for its fresh read. If a busy machine ran the steps in another order,
    // they are repeated.
    for _ in 0..50 {
        if let Some(verdict) = admit_while_the_ledger_is_written(&granted, beyond).await {
            assert_eq!(verdict, Verdict::Granted);
            return;
        }
    }
    panic!("no request waited for a fresh read while a Job finished");
}

/// `None` if the fresh read began before the slot became free, or if the request saw the free slot without one.
async fn admit_while_the_ledger_is_written(granted: &Value, beyond: u64) -> Option<Verdict> {
    let apiserver = Arc::new(LimitsApiserver::new(20).with_ledger("ci", empty()));
    apiserver.store("ci/y", "y");
    apiserver.store("ci/u", "u");
    let replica = replica(&apiserver, &[few(2)]).ready().await;
    let gets = || apiserver.job_gets();
    // A fresh read a moment ago makes the next one wait.
    why(replica.limiter.admit(attempt("ci/earlier", "earlier")).await);
    let (limiter, before) = (replica.limiter.clone(), gets());
    let asks = tokio::spawn(async move { limiter.admit(attempt("ci/r", "r")).await });
    // Usually enough for the request to arrive, and less than the 50 ms between two fresh reads.
    tokio::time::sleep(Duration::from_millis(3)).await;
    apiserver.finish("ci/u");
    if gets() != before {
        return None;
    }
    while gets() == before {
        if asks.is_finished() {
            assert_eq!(asks.await.unwrap(), Verdict::Granted);
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    apiserver.report("jobs", false);
    apiserver.store("ci/x", "x");
    apiserver.finish("ci/x");
    let observed = match beyond {
        0 => 0,
        beyond => apiserver.version() + beyond,
    };
    let pending = if granted.is_null() { json!({}) } else { json!({"ci/x": {"request-of-x": granted}}) };
    apiserver.put_ledger("ci", json!({"format": 1, "pending": pending, "observedThrough": observed}));
    Some(asks.await.unwrap())
}

#[rstest]
#[case::an_hour_ahead(1)]
#[case::an_hour_behind(-1)]
#[case::years_behind(-200_000)]
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_without_a_job_expires_by_the_monotonic_clock(#[case] hours: i64) {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("ci", empty()));
    let replica = replica(&apiserver, &[few(1)]).ready().await;
    assert_eq!(replica.limiter.admit(attempt("ci/a", "a")).await, Verdict::Granted);
    // The wall-clock times in the ledger are informational.
    let mut spec = apiserver.ledger("ci")["spec"].clone();
    let since = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(hours)).unwrap();
    spec["pending"]["ci/a"]["request-a"]["since"] = json!(since.to_string());
    apiserver.put_ledger("ci", spec);
    let refused = why(replica.limiter.admit(attempt("ci/b", "b")).await);
    assert!(refused.contains("1 just admitted"), "{refused}");
    replica.clock.advance(Duration::from_secs(61));
    assert_eq!(replica.limiter.admit(attempt("ci/b", "b2")).await, Verdict::Granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_whose_creates_fail_is_throttled_and_others_are_not() {
    let apiserver = Arc::new(LimitsApiserver::new(0).with_ledger("cluster.job-handler.io", empty()));
    let limits = json!({"limits": [{"name": "all", "maxActiveJobs": 100, "scope": "Cluster"}]});
    let replica = replica(&apiserver, &[cluster_policy("all", limits)]).ready().await;
    let granted = |n: usize| replica.limiter.admit(attempt(&format!("ci/j{n}"), &format!("{n}")));
    for n in 0..16 {
        assert_eq!(granted(n).await, Verdict::Granted);
    }
    // An attempt counts as failed once it is older than 2 s.
    replica.clock.advance(Duration::from_secs(3));
    let verdict = replica.limiter.admit(attempt("ci/j0", "again")).await;
    let Verdict::TooMany { why: refused, .. } = verdict else { panic!("not throttled: {verdict:?}") };
    assert!(refused.contains("namespace ci were admitted and then not created"), "{refused}");
    assert_eq!(replica.limiter.admit(attempt("qa/x", "x")).await, Verdict::Granted);
}
