use std::time::Duration;

use job_handler_shared::{policy::set::PolicySet, testing::policies::namespaced};
use serde_json::json;

use super::*;
use crate::ledger::test_support::{LedgerApiserver, attempt, id, ledger_with};

struct RunningActor {
    apiserver: LedgerApiserver,
    context: Arc<LedgerContext>,
    inbox: mpsc::Sender<ActorMessage>,
}

impl RunningActor {
    fn start(max: u32) -> Self {
        let apiserver = LedgerApiserver::new(&ledger_with(&[]));
        let context = apiserver.context(max);
        let (inbox, messages) = mpsc::channel(100);
        drop(tokio::spawn(LedgerActor::new(id(), messages, context.clone()).run()));
        Self { apiserver, context, inbox }
    }

    fn ask(&self, attempt: Attempt) -> oneshot::Receiver<Verdict> {
        let (reply, verdict) = oneshot::channel();
        let request = DecisionRequest { attempt, arrived: Instant::now(), reply };
        self.inbox.try_send(ActorMessage::Decide(Box::new(request))).unwrap();
        verdict
    }

    /// Waits until every message before was handled.
    async fn wait_until_idle(&self) {
        let dry_run = Attempt { dry_run: true, ..attempt("probe") };
        self.ask(dry_run).await.unwrap();
    }

    fn writes(&self) -> usize {
        self.apiserver.writes()
    }

    fn fresh_reads(&self) -> u64 {
        self.context.metrics.consistent_reads.get()
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_arrive_together_share_a_write() {
    let actor = RunningActor::start(100);
    let verdicts: Vec<_> = (0..10).map(|n| actor.ask(attempt(&format!("j{n}")))).collect();
    for verdict in verdicts {
        assert_eq!(verdict.await.unwrap(), Verdict::Granted);
    }
    assert_eq!((actor.writes(), actor.fresh_reads()), (1, 0));
    assert_eq!(actor.apiserver.contents().attempts().count(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_follows_a_fresh_read_and_a_second_entry_gets_the_same_one() {
    let actor = RunningActor::start(0);
    let first = actor.ask(attempt("a")).await.unwrap();
    assert!(matches!(first, Verdict::Refused(_)), "{first:?}");
    assert_eq!(actor.fresh_reads(), 1);
    let second = Attempt { uid: "of another entry".into(), ..attempt("a") };
    assert_eq!(actor.ask(second).await.unwrap(), first);
    assert_eq!(actor.fresh_reads(), 1, "the refusal is remembered");
    // Another Job waits for a read of its own.
    assert!(matches!(actor.ask(attempt("b")).await.unwrap(), Verdict::Refused(_)));
    assert_eq!((actor.fresh_reads(), actor.writes()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_gone_before_the_round_gets_no_grant() {
    let actor = RunningActor::start(1);
    drop(actor.ask(attempt("gone")));
    actor.wait_until_idle().await;
    assert_eq!((actor.writes(), actor.apiserver.contents().attempts().count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_grant_of_a_caller_that_leaves_during_the_write_is_revoked() {
    let actor = RunningActor::start(1);
    let verdict = actor.ask(attempt("leaves"));
    // The write takes 10 ms. Time is paused, so the 5 ms end during the write on every machine.
    tokio::time::sleep(Duration::from_millis(5)).await;
    drop(verdict);
    assert_eq!(actor.ask(attempt("next")).await.unwrap(), Verdict::Granted);
    let left: Vec<String> = actor.apiserver.contents().pending.into_keys().collect();
    assert_eq!(left, ["ci/next"]);
}

#[tokio::test(start_paused = true)]
async fn a_round_gives_up_after_its_attempts_conflicted() {
    let actor = RunningActor::start(1);
    actor.apiserver.conflict(MAX_ATTEMPTS);
    let verdict = actor.ask(attempt("a")).await.unwrap();
    let Verdict::Unavailable { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(why.contains("other replicas kept writing the ledger first"), "{why}");
    assert_eq!(actor.writes(), MAX_ATTEMPTS as usize);
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_answer_was_lost_is_given_after_a_read() {
    let actor = RunningActor::start(1);
    actor.apiserver.lose_next_response();
    assert_eq!(actor.ask(attempt("a")).await.unwrap(), Verdict::Granted);
    assert_eq!((actor.writes(), actor.apiserver.reads()), (2, 1));
    assert_eq!(actor.apiserver.contents().attempts().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_apiserver_rejects_is_dropped_and_the_others_go_on() {
    let actor = RunningActor::start(100);
    actor.apiserver.reject("poison");
    let mut verdicts: Vec<_> = (0..20).map(|n| actor.ask(attempt(&format!("j{n}")))).collect();
    let poisoned = actor.ask(attempt("poison"));
    verdicts.extend((20..40).map(|n| actor.ask(attempt(&format!("j{n}")))));
    for verdict in verdicts {
        assert_eq!(verdict.await.unwrap(), Verdict::Granted);
    }
    let verdict = poisoned.await.unwrap();
    let Verdict::Unavailable { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(why.contains("too large"), "{why}");
    assert_eq!(actor.apiserver.contents().attempts().count(), 40);
    assert!(actor.writes() <= 2 * 7, "{} writes", actor.writes());
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_rejected_whatever_is_in_it_costs_few_writes() {
    let actor = RunningActor::start(1000);
    actor.apiserver.reject("JobLedger");
    let verdicts: Vec<_> = (0..90).map(|n| actor.ask(attempt(&format!("j{n}")))).collect();
    for verdict in verdicts {
        assert!(matches!(verdict.await.unwrap(), Verdict::Unavailable { .. }));
    }
    // What waits in parts when the search ends is tried once more.
    assert!(actor.writes() <= MAX_REJECTED as usize + 8, "{} writes", actor.writes());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_of_unknown_labels_is_not_decided_and_the_others_are() {
    let actor = RunningActor::start(1);
    let spec = json!({"jobSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]},
        "limits": [{"name": "few", "maxActiveJobs": 1}]});
    actor.context.policies.replace_fixed(PolicySet::new([namespaced("p", spec)]));
    let mut trimmed = attempt("a");
    trimmed.job.kept_labels = Some(Arc::default());
    let (trimmed, complete) = (actor.ask(trimmed), actor.ask(attempt("b")));
    let verdict = trimmed.await.unwrap();
    let Verdict::Unavailable { why, .. } = verdict else { panic!("{verdict:?}") };
    assert!(why.contains("the policies have just changed"), "{why}");
    assert_eq!(complete.await.unwrap(), Verdict::Granted);
}
