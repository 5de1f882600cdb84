use job_handler_shared::policy::set::PolicySet;

use super::*;

/// A clock, and what is known while a watch begins at which policy `old` and namespace `ci` exist.
fn with_new_watch() -> (Clock, KnownLedgers) {
    let clock = Clock::default();
    let ledgers = KnownLedgers::new(clock.clone());
    ledgers.table.lock().watch = Some(WatchStart {
        since: Instant::now(),
        policies: ["old".to_owned()].into(),
        namespaces: ["ci".to_owned()].into(),
    });
    (clock, ledgers)
}

fn watch(ledgers: &KnownLedgers) -> LedgerWatchHandler<'_> {
    LedgerWatchHandler { known_ledgers: ledgers, policies: Policies::fixed(PolicySet::default(), []) }
}

fn ledger(name: &str) -> JobLedger {
    JobLedger::new(name, job_handler_shared::ledger::crd::JobLedgerSpec::empty())
}

fn after(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_deleted_ledger_is_not_recreated_for_a_minute() {
    let clock = Clock::default();
    let ledgers = KnownLedgers::new(clock.clone());
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_err(), "no watch yet");
    watch(&ledgers).replace(vec![ledger("ci")]);
    assert!(
        ledgers.may_recreate("other", ledgers.now(), ["p"]).is_ok(),
        "the policy is newer than the watch"
    );
    watch(&ledgers).delete(ledger("ci"));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_err());
    clock.advance(after(59));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_err());
    clock.advance(after(2));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_ok());
    // Found missing by a read, before the watch event arrives.
    ledgers.record("ci", &KnownLedger::parse(ledger("ci")).unwrap());
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_err());
    clock.advance(after(61));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["p"]).is_ok());
}

#[test]
fn a_new_watch_blocks_ledgers_that_older_policies_may_have_used() {
    let (clock, ledgers) = with_new_watch();
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["old", "new"]).is_err());
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["new"]).is_ok());
    clock.advance(after(61));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["old", "new"]).is_ok());
}

#[test]
fn a_namespace_newer_than_the_watch_has_no_older_grants() {
    let (clock, ledgers) = with_new_watch();
    assert!(
        ledgers.should_create("later", ["old"])
            && !ledgers.should_create("ci", ["old"])
            && ledgers.should_create("ci", ["new"])
    );
    assert!(!ledgers.should_create("cluster.job-handler.io", ["old"]));
    ledgers.record("later", &KnownLedger::parse(ledger("later")).unwrap());
    assert!(!ledgers.should_create("later", ["old"]), "it exists");
    watch(&ledgers).delete(ledger("later"));
    assert!(!ledgers.should_create("later", ["old"]), "it was deleted a moment ago");
    let delayed = |ledger, by| ledgers.recreate_delay(ledger, [by]).is_some();
    assert!(delayed("later", "old") && delayed("ci", "old") && !delayed("ci", "new"));
    clock.advance(after(61));
    assert!(ledgers.should_create("later", ["old"]) && ledgers.should_create("ci", ["old"]));
    assert!(!delayed("later", "old") && !delayed("ci", "old"));
}

#[test]
fn a_ledger_created_during_a_read_does_not_count_as_deleted() {
    let clock = Clock::default();
    let ledgers = KnownLedgers::new(clock.clone());
    watch(&ledgers).replace(vec![]);
    let read_at = ledgers.now();
    watch(&ledgers).begin();
    clock.advance(after(1));
    ledgers.record("ci", &KnownLedger::parse(ledger("ci")).unwrap());
    assert!(ledgers.may_recreate("ci", read_at, ["new"]).is_ok());
    watch(&ledgers).replace(vec![]);
    assert!(ledgers.latest("ci").is_some(), "a list that began earlier need not contain it");
    clock.advance(after(1));
    assert!(ledgers.may_recreate("ci", ledgers.now(), ["new"]).is_err(), "deleted");
}

#[test]
fn a_watch_event_older_than_our_own_write_is_ignored() {
    let ledgers = KnownLedgers::default();
    let version = |version: u64| {
        let mut ledger = ledger("ci");
        ledger.metadata.resource_version = Some(version.to_string());
        ledger
    };
    ledgers.record("ci", &KnownLedger::parse(version(9)).unwrap());
    watch(&ledgers).apply(version(8));
    assert_eq!(ledgers.latest("ci").unwrap().version, 9);
    let mut garbage = version(10);
    garbage.spec.fields.insert("format".into(), "?".into());
    watch(&ledgers).apply(garbage);
    assert!(ledgers.latest("ci").is_none(), "must be read again");
}
