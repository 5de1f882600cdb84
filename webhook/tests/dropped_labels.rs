//! The cache keeps only labels that policies name. A policy that names another one counts exactly from the first decision.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

mod apiserver;
mod common;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use apiserver::{LimitsApiserver, attempt, empty, eventually, replica};
use common::{cluster_policy, policy};
use job_handler_shared::{
    ledger::crd::CLUSTER_LEDGER,
    policy::{parsed::Policy, set::PolicySet},
    testing::policies::job_policy,
};
use job_handler_webhook::limit::{Attempt, Limiter, Verdict};
use serde_json::{Value, json};

const LABELS: usize = 10_000;
/// How often a policy changes.
const CHANGE: Duration = Duration::from_millis(100);
/// What a call takes, milliseconds: longer than until the next change.
const LATENCY: u64 = 150;

fn labelled(key: &str) -> Attempt {
    let mut attempt = attempt(key, key);
    attempt.job.labels.insert("l07777".to_owned(), String::new());
    attempt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_names_a_dropped_label_counts_the_jobs_that_have_it() {
    let apiserver = Arc::new(LimitsApiserver::default().with_ledger("ci", empty()));
    let labels: BTreeMap<String, String> = (0..LABELS).map(|n| (format!("l{n:05}"), String::new())).collect();
    let metadata = json!({"name": "old", "namespace": "ci", "uid": "old", "labels": labels});
    apiserver.put("jobs", json!({"metadata": metadata, "spec": {"template": {}}}));
    let any = policy("any", json!({"limits": [{"name": "many", "maxActiveJobs": 100}]}));
    let replica = replica(&apiserver, &[any]).ready().await;
    let lists = apiserver.job_lists();
    let by_label = json!({"jobSelector": {"matchLabels": {"l07777": ""}},
        "limits": [{"name": "one", "maxActiveJobs": 1}]});
    replica.policies.replace_fixed(PolicySet::new([policy("by-label", by_label)]));
    let verdict = replica.limiter.admit(labelled("ci/new")).await;
    let Verdict::Refused(refused) = &verdict else { panic!("{verdict:?}") };
    assert!(refused.message.contains("oldest: old "), "{}", refused.message);
    // Other Jobs are not selected.
    assert_eq!(replica.limiter.admit(attempt("ci/other", "other")).await, Verdict::Granted);
    eventually("the Jobs to be listed again", || apiserver.job_lists() > lists).await;
    apiserver.delete_job("ci/old");
    eventually("the deletion to be seen", || apiserver.job("ci/old").is_none()).await;
    assert_eq!(replica.limiter.admit(labelled("ci/new2")).await, Verdict::Granted);
}

fn limit(key: &str, value: &str, max: u32, scope: &str) -> Value {
    json!({"jobSelector": {"matchLabels": {key: value}},
        "limits": [{"name": "few", "maxActiveJobs": max, "scope": scope}]})
}

/// Decides about Jobs of `ci` under a limit while a policy of `hostile` names another label key ten times a second. Returns
/// the verdicts, and how often Jobs were listed.
async fn decide_while_keys_change(limited: Arc<Policy>, hostile: &str) -> (Vec<Verdict>, usize) {
    let apiserver = LimitsApiserver::new(LATENCY).with_ledger("ci", empty());
    let apiserver = Arc::new(apiserver.with_ledger(CLUSTER_LEDGER, empty()));
    for (namespace, app) in [("ci", "build"), ("qa", "test")] {
        let labels = json!({"app": app, "version": "7"});
        let metadata = json!({"name": "old", "namespace": namespace, "uid": namespace, "labels": labels});
        apiserver.put("jobs", json!({"metadata": metadata, "spec": {"template": {}}}));
    }
    let replica = replica(&apiserver, std::slice::from_ref(&limited)).ready().await;
    let (policies, namespace) = (replica.policies.clone(), hostile.to_owned());
    let changes = tokio::spawn(async move {
        for n in 1.. {
            let metadata =
                json!({"name": "hostile", "namespace": namespace, "uid": "hostile", "generation": n});
            let hostile = job_policy(metadata, limit(&format!("k{n}"), "", 9, "Namespace"));
            policies.replace_fixed(PolicySet::new([limited.clone(), hostile]));
            tokio::time::sleep(CHANGE).await;
        }
    });
    tokio::time::sleep(CHANGE * 5).await;
    let mut verdicts = Vec::new();
    for name in ["a", "b", "c"] {
        let mut attempt = attempt(&format!("ci/{name}"), name);
        attempt.job.labels.insert("app".to_owned(), "build".to_owned());
        attempt.answer_by = Instant::now() + Duration::from_secs(5);
        verdicts.push(replica.limiter.admit(attempt).await);
    }
    tokio::time::sleep(CHANGE * 20).await;
    changes.abort();
    (verdicts, apiserver.job_lists())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_change_all_the_time_hold_no_limit_shut_and_cause_few_lists() {
    let of_namespace = policy("limited", limit("app", "build", 3, "Namespace"));
    let of_cluster = cluster_policy("limited", limit("app", "build", 3, "Cluster"));
    for (limited, hostile) in [(of_namespace.clone(), "qa"), (of_namespace, "ci"), (of_cluster, "qa")] {
        let (verdicts, lists) = decide_while_keys_change(limited, hostile).await;
        let [Verdict::Granted, Verdict::Granted, Verdict::Refused(refused)] = &verdicts[..] else {
            panic!("{hostile}: {verdicts:?}")
        };
        assert!(refused.message.contains("3 active jobs, max allowed: 3"), "{}", refused.message);
        // The first one, one for new keys, and one for each decision that the cache cannot make.
        assert!(lists <= 8, "{hostile}: {lists} lists");
    }
}
