use job_handler_shared::testing::policies::{cluster, job_policy, namespaced};
use serde_json::json;

use super::*;
use crate::ledger::test_support::{LedgerApiserver, attempt, id, ledger_with};

/// How many times the ledger was written and read.
fn calls(apiserver: &LedgerApiserver) -> (usize, usize) {
    (apiserver.writes(), apiserver.reads())
}

#[tokio::test(start_paused = true)]
async fn a_grant_costs_one_write_and_no_read() {
    let apiserver = LedgerApiserver::new(&ledger_with(&[]));
    let mut rounds = RoundRunner::new(id(), apiserver.context(1));
    let verdicts = rounds.attempt(&[&attempt("a")], None).await.unwrap();
    assert_eq!((verdicts, calls(&apiserver)), (vec![Verdict::Granted], (1, 0)));
    let (name, ..) = apiserver.contents().pending.first_key_value().map(|(name, _)| (name.clone(),)).unwrap();
    assert_eq!(name, "ci/a");
    // The answer to the write is the newest version: the next round needs no read either.
    let refused = rounds.attempt(&[&attempt("b")], None).await.unwrap();
    assert!(matches!(refused[0], Verdict::Refused(_)));
    assert_eq!((rounds.freshness, calls(&apiserver)), (Freshness::Any, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn after_a_conflict_only_a_newer_version_is_used() {
    let apiserver = LedgerApiserver::new(&ledger_with(&[]));
    let context = apiserver.context(1);
    let mut rounds = RoundRunner::new(id(), context.clone());
    apiserver.conflict(1);
    let error = rounds.attempt(&[&attempt("a")], None).await.unwrap_err();
    assert!(matches!(error, RoundError::Retry));
    assert_eq!(rounds.freshness, Freshness::NewerThan(1));
    assert!(context.known_ledgers.is_contended("ci"));
    assert_eq!(rounds.attempt(&[&attempt("a")], None).await.unwrap(), [Verdict::Granted]);
    assert_eq!((rounds.freshness, calls(&apiserver)), (Freshness::Any, (2, 1)));
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_the_ledger_is_read_before_the_grant_is_given() {
    let apiserver = LedgerApiserver::new(&ledger_with(&[]));
    let mut rounds = RoundRunner::new(id(), apiserver.context(1));
    apiserver.lose_next_response();
    let error = rounds.attempt(&[&attempt("a")], None).await.unwrap_err();
    assert!(matches!(error, RoundError::RetryUnknownWrite));
    assert_eq!(rounds.freshness, Freshness::Unknown);
    assert_eq!(rounds.attempt(&[&attempt("a")], None).await.unwrap(), [Verdict::Granted]);
    assert_eq!((rounds.freshness, calls(&apiserver)), (Freshness::Any, (2, 1)));
    assert_eq!(apiserver.contents().attempts().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_the_known_ledger_already_holds_is_confirmed_by_a_write() {
    let apiserver = LedgerApiserver::new(&ledger_with(&["a"]));
    let mut rounds = RoundRunner::new(id(), apiserver.context(1));
    assert_eq!(rounds.attempt(&[&attempt("a")], None).await.unwrap(), [Verdict::Granted]);
    assert_eq!((apiserver.contents().attempts().count(), calls(&apiserver)), (1, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_lags_behind_the_ledger_decides_nothing() {
    let apiserver = LedgerApiserver::new(&json!({"format": 1, "observedThrough": 7}));
    let context = apiserver.context(1);
    let mut rounds = RoundRunner::new(id(), context.clone());
    let error = rounds.attempt(&[&attempt("a")], None).await.unwrap_err();
    assert!(matches!(error, RoundError::StaleCache));
    context.cache.bookmark(7);
    assert_eq!(rounds.attempt(&[&attempt("a")], None).await.unwrap(), [Verdict::Granted]);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_lack_labels_which_a_policy_names_decide_nothing() {
    let apiserver = LedgerApiserver::new(&ledger_with(&[]));
    let context = apiserver.context(1);
    let mut rounds = RoundRunner::new(id(), context.clone());
    let trimmed = JobSnapshot { kept_labels: Some(Arc::default()), ..attempt("big").job };
    context.cache.apply(Arc::new(trimmed), 2);
    assert!(rounds.attempt(&[&attempt("a")], None).await.is_ok(), "no policy names a label");
    let spec = json!({"jobSelector": {"matchLabels": {"app": "x"}}, "limits": [{"name": "few", "maxActiveJobs": 1}]});
    let other = job_policy(json!({"name": "p", "namespace": "qa", "uid": "p"}), spec.clone());
    context.policies.replace_fixed(PolicySet::new([other]));
    assert!(rounds.attempt(&[&attempt("a")], None).await.is_ok(), "a policy of another namespace names it");
    for policy in [namespaced("p", spec.clone()), cluster("p", spec)] {
        context.policies.replace_fixed(PolicySet::new([policy]));
        let error = rounds.attempt(&[&attempt("a")], None).await.unwrap_err();
        assert!(matches!(error, RoundError::StaleCache));
    }
}

#[tokio::test(start_paused = true)]
async fn resolved_attempts_alone_are_written_only_by_housekeeping() {
    let apiserver = LedgerApiserver::new(&ledger_with(&["a"]));
    let context = apiserver.context(1);
    let job = JobSnapshot { resource_version: "2".into(), ..attempt("a").job };
    context.cache.apply(Arc::new(job), 2);
    let mut rounds = RoundRunner::new(id(), context);
    rounds.attempt(&[], None).await.unwrap();
    assert_eq!((apiserver.contents().attempts().count(), calls(&apiserver)), (1, (0, 0)));
    rounds.set_housekeeping(true);
    rounds.attempt(&[], None).await.unwrap();
    let contents = apiserver.contents();
    assert_eq!((contents.attempts().count(), contents.observed_through, calls(&apiserver)), (0, 2, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_grant_is_removed_and_then_no_longer_revoked() {
    let apiserver = LedgerApiserver::new(&ledger_with(&["a", "b"]));
    let mut rounds = RoundRunner::new(id(), apiserver.context(1));
    rounds.revoke("a".to_owned());
    rounds.attempt(&[], None).await.unwrap();
    let left: Vec<String> = apiserver.contents().pending.into_keys().collect();
    assert_eq!((left, rounds.has_revoked(), calls(&apiserver)), (vec!["ci/b".to_owned()], false, (1, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_missing_ledger_is_not_created_before_the_watch_excludes_older_attempts() {
    let apiserver = LedgerApiserver::new(&ledger_with(&[]));
    let context = apiserver.context(1);
    let mut rounds = RoundRunner::new(id(), context.clone());
    let error = rounds.create_ledger(context.known_ledgers.now()).await;
    let RoundError::Failed(why) = error else { panic!("{error:?}") };
    assert!(why.contains("the JobLedger ci is missing"), "{why}");
    assert_eq!(calls(&apiserver), (0, 0));
}
