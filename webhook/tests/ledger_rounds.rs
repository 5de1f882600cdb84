//! Single rounds of the ledger's protocol: which requests are granted, and what the ledger records.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{
        HeldRequest, MAX_ATTEMPTS_PER_NAME, RoundDecision, RoundInput, SlotAnswer, SlotRequest, decide,
    },
    resolve::{ObservedJob, ViewSource},
};
use job_handler_webhook::limit::scopes::HolderKind;

fn asked(name: &str, request: &str) -> SlotRequest {
    SlotRequest {
        request: request.to_owned(),
        name: format!("ci/{name}"),
        job_uid: format!("uid-{request}"),
        kind: AttemptKind::Create,
        scopes: vec![("few".to_owned(), 1)],
        held: HeldRequest::Nothing,
        dry_run: false,
        shared: false,
        in_backoff: false,
    }
}

fn active(name: &str, version: u64) -> ObservedJob {
    ObservedJob {
        name: format!("ci/{name}"),
        uid: format!("uid-{name}"),
        version,
        active: true,
        scopes: vec!["few".to_owned()],
        since: Timestamp::UNIX_EPOCH,
    }
}

fn granted(contents: &mut LedgerContents, name: &str, request: &str, revision: &str, scope: &str) {
    let granted = GrantedAttempt {
        job_uid: format!("uid-{request}"),
        kind: AttemptKind::Create,
        revision: revision.to_owned(),
        scopes: vec![scope.to_owned()],
        since: Timestamp::UNIX_EPOCH,
    };
    contents.pending.entry(format!("ci/{name}")).or_default().insert(request.to_owned(), granted);
}

#[derive(Default)]
struct RoundSetup {
    contents: LedgerContents,
    jobs: Vec<ObservedJob>,
    view_source: Option<ViewSource>,
    expired: BTreeSet<String>,
    revoked: BTreeSet<String>,
    forgotten: BTreeSet<String>,
    refusals_by: Option<ViewSource>,
}

impl RoundSetup {
    fn try_decide(&self, asked: &[SlotRequest]) -> Option<RoundDecision> {
        let given = RoundInput {
            contents: &self.contents,
            view_source: self.view_source.unwrap_or(ViewSource::List),
            jobs: &self.jobs.iter().collect::<Vec<_>>(),
            expired: &self.expired,
            unstored: &BTreeMap::new(),
            revoked: &self.revoked,
            forgotten: &self.forgotten,
            refusals_by: self.refusals_by,
            revision: &|_| "now".to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(given, asked)
    }

    fn decide(&self, asked: &[SlotRequest]) -> (Vec<bool>, LedgerContents) {
        let decided = self.try_decide(asked).unwrap();
        (decided.answers.iter().map(|answer| *answer == SlotAnswer::Granted).collect(), decided.contents)
    }
}

#[test]
fn the_first_request_gets_the_slot_and_is_recorded() {
    let round = RoundSetup::default();
    let (answers, contents) = round.decide(&[asked("a", "1"), asked("b", "2"), asked("a", "3")]);
    assert_eq!(answers, [true, false, true], "a name counts once");
    let written: Vec<_> = contents.attempts().map(|(name, request, _)| (name, request)).collect();
    assert_eq!(written, [("ci/a", "1"), ("ci/a", "3")], "each request has its own attempt");
    // A repeated request, whose answer was lost: it is granted and not recorded twice.
    let again = RoundSetup { contents: contents.clone(), ..RoundSetup::default() };
    assert_eq!(again.decide(&[asked("a", "1")]), (vec![true], contents));
}

/// The labels of a namespace may change between the write whose answer was lost and the next round.
#[test]
fn a_repeated_request_in_another_scope_needs_room_there() {
    let mut contents = LedgerContents::default();
    granted(&mut contents, "a", "1", "now", "other");
    granted(&mut contents, "b", "2", "now", "few");
    let round = RoundSetup { contents, ..RoundSetup::default() };
    assert_eq!(round.decide(&[asked("a", "1")]).0, [false]);
}

#[test]
fn a_dry_run_and_a_job_under_no_limit_are_not_recorded() {
    let dry = SlotRequest { dry_run: true, ..asked("a", "1") };
    let free = SlotRequest { scopes: vec![], ..asked("b", "2") };
    assert_eq!(RoundSetup::default().decide(&[dry, free]), (vec![true, true], LedgerContents::default()));
}

fn shared(name: &str, request: &str) -> SlotRequest {
    SlotRequest { shared: true, ..asked(name, request) }
}

#[test]
fn a_refusal_of_a_create_that_others_are_asked_about_ends_their_grants() {
    let mut contents = LedgerContents::default();
    granted(&mut contents, "b", "2", "now", "other");
    let again = SlotRequest { job_uid: "uid-2".to_owned(), ..shared("b", "3") };
    let mut round = RoundSetup {
        contents,
        jobs: vec![active("a", 7)],
        refusals_by: Some(ViewSource::List),
        ..RoundSetup::default()
    };
    let (answers, after) = round.decide(std::slice::from_ref(&again));
    assert_eq!((answers, after.attempts().count()), (vec![false], 0));
    assert!(after.refused.contains_key("uid-2"));

    // The slot is free now: for other creates only.
    round = RoundSetup { contents: after, ..RoundSetup::default() };
    let decided = round.try_decide(&[again.clone(), asked("c", "4")]).unwrap();
    assert_eq!(decided.answers, [SlotAnswer::RefusedBefore, SlotAnswer::Granted]);
    round.forgotten = ["uid-2".to_owned()].into();
    assert!(round.decide(&[]).1.refused.is_empty());
}

#[test]
fn only_a_final_refusal_of_a_create_that_others_are_asked_about_is_recorded() {
    let full = |view| RoundSetup { jobs: vec![active("a", 7)], refusals_by: view, ..RoundSetup::default() };
    let list = full(Some(ViewSource::List));
    assert_eq!(full(None).decide(&[shared("b", "2")]).1, LedgerContents::default());
    assert_eq!(list.decide(&[asked("b", "2")]).1, LedgerContents::default());
    // A failed Job may be missing in a view that is no LIST.
    let waits = SlotRequest { in_backoff: true, ..shared("b", "2") };
    let cache = RoundSetup { refusals_by: Some(ViewSource::Cache(7)), ..RoundSetup::default() };
    assert_eq!(cache.decide(std::slice::from_ref(&waits)), (vec![false], LedgerContents::default()));
    let list = RoundSetup { refusals_by: Some(ViewSource::List), ..RoundSetup::default() };
    assert_eq!(list.decide(&[waits]).1.refused.len(), 1);
    // The oldest of many are forgotten.
    let many: Vec<SlotRequest> = (0..600).map(|n| shared("b", &format!("{n:03}"))).collect();
    let full = full(Some(ViewSource::List));
    let refused = full.decide(&many).1.refused;
    assert!(refused.len() == 512 && refused.contains_key("uid-599"), "{}", refused.len());
}

#[test]
fn a_resolved_attempt_is_removed_and_its_version_recorded() {
    let mut round =
        RoundSetup { jobs: vec![ObservedJob { active: false, ..active("1", 9) }], ..RoundSetup::default() };
    granted(&mut round.contents, "1", "1", "now", "few");
    let (answers, contents) = round.decide(&[asked("b", "2")]);
    assert_eq!((answers, contents.observed_through), (vec![true], 9));
    // An older view must not decide.
    let behind = RoundSetup { contents, view_source: Some(ViewSource::Cache(8)), ..RoundSetup::default() };
    assert!(behind.try_decide(&[]).is_none());
}

/// The Job of that name is deleted, and its slot was granted to another name.
#[test]
fn a_name_in_a_stale_view_gets_no_second_slot() {
    let mut round = RoundSetup {
        jobs: vec![active("a", 5)],
        view_source: Some(ViewSource::Cache(5)),
        ..RoundSetup::default()
    };
    granted(&mut round.contents, "b", "1", "now", "few");
    assert_eq!(round.decide(&[asked("a", "2")]).0, [false]);
    // If no other name holds a slot, the apiserver answers 409 itself.
    round.contents = LedgerContents::default();
    assert_eq!(round.decide(&[asked("a", "2")]).0, [true]);
}

#[test]
fn an_attempt_of_another_policy_revision_counts_everywhere() {
    let mut round = RoundSetup::default();
    granted(&mut round.contents, "a", "1", "before", "by another name");
    assert_eq!(round.decide(&[asked("b", "2")]).0, [false]);
    granted(&mut round.contents, "a", "1", "now", "by another name");
    assert_eq!(round.decide(&[asked("b", "2")]).0, [true]);
}

#[test]
fn only_the_named_expired_and_revoked_attempts_are_removed() {
    let mut round = RoundSetup {
        expired: ["1".to_owned()].into(),
        revoked: ["2".to_owned()].into(),
        ..RoundSetup::default()
    };
    for request in ["1", "2", "3"] {
        granted(&mut round.contents, "a", request, "now", "few");
    }
    let (answers, contents) = round.decide(&[asked("b", "4")]);
    assert_eq!(answers, [false]);
    assert_eq!(contents.attempts().map(|(_, request, _)| request).collect::<Vec<_>>(), ["3"]);
}

#[test]
fn repeated_creates_of_one_name_do_not_fill_the_ledger() {
    let round = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    let asked: Vec<_> = (0..=MAX_ATTEMPTS_PER_NAME).map(|n| asked("a", &format!("{n:02}"))).collect();
    let decided = round.try_decide(&asked).unwrap();
    assert_eq!(decided.answers[MAX_ATTEMPTS_PER_NAME - 1], SlotAnswer::Granted);
    assert_eq!(
        decided.answers[MAX_ATTEMPTS_PER_NAME],
        SlotAnswer::TooManyAttempts { attempts: MAX_ATTEMPTS_PER_NAME }
    );
}

#[test]
fn backoff_refuses_unless_the_name_holds_its_slot() {
    let in_backoff = |name: &str| SlotRequest { in_backoff: true, ..asked(name, "1") };
    assert_eq!(
        RoundSetup::default().try_decide(&[in_backoff("a")]).unwrap().answers,
        [SlotAnswer::InBackoff]
    );
    let there = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    assert_eq!(there.decide(&[in_backoff("a")]).0, [true]);
}

/// The Job of [`active`] with this name goes, and leaves its pods.
fn orphaned(name: &str, from: u64) -> SlotRequest {
    SlotRequest {
        job_uid: format!("uid-{name}"),
        kind: AttemptKind::Unsuspend { from },
        held: HeldRequest::Orphans { since: Timestamp::UNIX_EPOCH },
        ..asked(name, &format!("orphans-{name}"))
    }
}

#[test]
fn pods_of_a_deleted_job_hold_its_slot_under_any_name() {
    let mut round = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    let (answers, contents) = round.decide(&[orphaned("a", 5), asked("a", "1"), asked("b", "2")]);
    assert_eq!(answers, [true, false, false], "another Job of the name is another Job");
    assert_eq!(contents.held["uid-a"].scopes, ["few"]);
    round.contents = contents;
    // It counts once, whether the view shows the Job or not.
    for jobs in [vec![active("a", 5)], Vec::new()] {
        round.jobs = jobs;
        let decided = round.try_decide(&[asked("a", "1")]).unwrap();
        let [SlotAnswer::Full { holders, .. }] = decided.answers.as_slice() else { panic!("{decided:?}") };
        let expected = if round.jobs.is_empty() { HolderKind::OrphanedPods } else { HolderKind::Running };
        assert_eq!(holders.values().map(|holder| holder.kind).collect::<Vec<_>>(), [expected]);
    }
    // A Job that has ended since holds nothing, although the sink has not removed the entry yet.
    round.jobs = vec![ObservedJob { active: false, ..active("a", 6) }];
    assert_eq!(round.decide(&[asked("b", "2")]).0, [true]);
}

#[test]
fn a_job_goes_only_if_there_is_room_for_the_next_one_of_its_name() {
    let mut round = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    granted(&mut round.contents, "a", "1", "now", "few");
    let answers = round.try_decide(&[orphaned("a", 5)]).unwrap().answers;
    assert_eq!(answers, [SlotAnswer::NameAdmitted]);
    let roomy = SlotRequest { scopes: vec![("few".to_owned(), 2)], ..orphaned("a", 5) };
    assert_eq!(round.decide(&[roomy]).0, [true]);
}

#[test]
fn a_relabelled_job_keeps_its_slot_and_returns_to_it() {
    let mut round = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    let left = HeldRequest::LeftScopes { scopes: vec!["few".to_owned()], since: Timestamp::UNIX_EPOCH };
    let leaves = SlotRequest { scopes: Vec::new(), held: left, ..orphaned("a", 5) };
    let (answers, contents) = round.decide(std::slice::from_ref(&leaves));
    assert_eq!(answers, [true]);
    round.contents = contents;
    round.jobs = vec![ObservedJob { scopes: Vec::new(), ..active("a", 6) }];
    assert_eq!(round.decide(&[asked("b", "1")]).0, [false]);
    let returns = SlotRequest {
        held: HeldRequest::Nothing,
        kind: AttemptKind::Unsuspend { from: 6 },
        ..orphaned("a", 6)
    };
    let (answers, contents) = round.decide(&[returns, asked("b", "1")]);
    assert_eq!((answers, contents.attempts().count()), (vec![true, false], 1));
}

#[test]
fn a_dry_run_holds_nothing() {
    let round = RoundSetup { jobs: vec![active("a", 5)], ..RoundSetup::default() };
    let (answers, contents) = round.decide(&[SlotRequest { dry_run: true, ..orphaned("a", 5) }]);
    assert!(answers == [true] && contents.holds_nothing());
}
