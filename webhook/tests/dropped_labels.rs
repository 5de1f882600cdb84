//! The cache keeps only labels that policies name. A policy that names another one counts exactly from the first decision.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

mod apiserver;
mod common;

use std::{collections::BTreeMap, sync::Arc};

use apiserver::{LimitsApiserver, attempt, empty, eventually, replica};
use common::policy;
use job_handler_shared::policy::set::PolicySet;
use job_handler_webhook::limit::{Attempt, Limiter, Verdict};
use serde_json::json;

const LABELS: usize = 10_000;

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
