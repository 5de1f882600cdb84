use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{Finished, Outcome},
    keys,
    policy::{namespace_share::NAMESPACE_POLICIES_MAX, reference::PolicyKind},
    result::{pending_events::JobPhase, storage_kind::StorageKind},
    testing::policies::{job_policy, namespaced},
};
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use super::*;
use crate::{
    model::{
        policy_entry::{MissingPolicy, PolicyEntry},
        stored_result::StoredResult,
    },
    observe::store_policies::ListedPolicies,
    test_support::policy_entry,
};

fn job(uid: &str, team: &str) -> JobSnapshot {
    JobSnapshot {
        namespace: "ci".into(),
        name: format!("job-{uid}"),
        uid: uid.into(),
        labels: [("team".to_owned(), team.to_owned())].into(),
        started: Some(Timestamp::UNIX_EPOCH),
        ..JobSnapshot::default()
    }
}

fn finished(job: JobSnapshot) -> JobSnapshot {
    let finished = Finished {
        outcome: Outcome::Completed,
        reason: String::new(),
        message: String::new(),
        at: Timestamp::UNIX_EPOCH,
    };
    JobSnapshot { finished: Some(finished), ..job }
}

fn policy(generation: i64, spec: Value) -> PolicyEntry {
    policy_entry(generation, namespaced("p", spec))
}

fn by_team() -> Value {
    json!({"group": {"type": "Labels", "labelKeys": ["team"]}, "results": {}, "cloudEventSinks": [{"name": "ci"}]})
}

fn refusal() -> LastRefusal {
    serde_json::from_value(json!({"job": "ci/a", "reason": "full", "time": "2026-01-01T00:00:00Z"})).unwrap()
}

/// A sealed result.
fn at(name: &str) -> ResultRef {
    ResultRef { sealed: true, ..ResultRef::at(StorageKind::ConfigMap, "ci", name) }
}

fn stored(uid: &str) -> StoredResult {
    StoredResult::of(uid, &at(&format!("job-{uid}-results")), &ObjectMeta::default())
}

/// Names of the stored results in the inventory, and of the references to them.
fn stored_names(store: &Store) -> (Vec<String>, Vec<String>) {
    let mut stored: Vec<String> = store.inventory().all().into_iter().map(|stored| stored.name).collect();
    let mut results: Vec<String> = store.results().into_iter().map(|result| result.name).collect();
    stored.sort();
    results.sort();
    (stored, results)
}

/// A store that knows the namespace, and a policy that groups by team.
fn store() -> Store {
    let store = Store::default();
    store.put_namespace("ci", Labels::default());
    assert!(store.put_policy(policy(1, by_team())));
    store
}

#[test]
fn every_write_that_subscribers_depend_on_wakes_them() {
    let store = store();
    let mut changes = store.changes();
    let mut woken = |what: &str, expected: bool, write: &dyn Fn(&Store)| {
        changes.mark_unchanged();
        write(&store);
        assert_eq!(changes.has_changed().unwrap(), expected, "{what}");
    };
    woken("a Job", true, &|s| drop(s.put_job(job("a", "x"))));
    woken("an unknown Job is deleted", false, &|s| drop(s.remove_job("b", None)));
    woken("a relist that has everything", false, &|s| drop(s.retain_jobs(&["a".to_owned()].into())));
    woken("a relist without the Job", true, &|s| drop(s.retain_jobs(&BTreeSet::new())));
    woken("the same labels", false, &|s| drop(s.put_namespace("ci", Labels::default())));
    woken("other labels", true, &|s| drop(s.put_namespace("ci", [("a".to_owned(), "b".to_owned())].into())));
    woken("the status of a policy", true, &|s| _ = s.put_policy(policy(1, by_team())));
    woken("no policy is gone", false, &|s| _ = s.remove_policies(|_| false));
    woken("a policy is gone", true, &|s| _ = s.remove_policies(|_| true));
    woken("a refusal by an unknown policy", false, &|s| s.put_refusal("p", refusal()));
    woken("a result without its size", false, &|s| s.put_result("a", ResultRef::default()));
    woken("a result with its size", true, &|s| {
        s.put_result("a", ResultRef { bytes: 1, ..ResultRef::default() });
    });
    woken("a result is gone", true, &|s| s.remove_results(|_, _| true));
    let at = || ResultRef::at(StorageKind::ConfigMap, "ci", "job-a-results");
    woken("a stored result", true, &|s| s.put_stored(stored("a"), ResultRef { bytes: 1, ..at() }));
    woken("a stored result is gone", true, &|s| s.remove_stored(&at(), None));
    woken("a relist of stored results", true, &|s| s.retain_stored(StorageKind::ConfigMap, |_, _| true));
    woken("the right to Secrets", true, &|s| _ = s.secrets.allow());
    woken("the same right", false, &|s| _ = s.secrets.allow());
    woken("a ledger is gone", true, &|s| s.ledgers.remove_where(|_| true));
}

#[test]
fn a_job_moves_to_another_group_with_its_labels_and_with_the_policies() {
    let store = store();
    let change = store.put_job(job("a", "x"));
    let x = change.group.clone().unwrap();
    assert!(change.new);
    store.put_job(job("b", "x"));
    assert_eq!(store.groups(), std::slice::from_ref(&x));
    let change = store.put_job(job("b", "y"));
    assert!(!change.new && change.group != Some(x.clone()));
    assert_eq!(store.group(&x).iter().map(|job| &*job.uid).collect::<Vec<_>>(), ["a"]);
    store.put_policy(policy(2, json!({"results": {}})));
    assert_eq!((store.group_of("a"), store.group_of("b")), (None, None));
    assert!(store.groups().is_empty());
}

#[test]
fn a_new_status_of_a_policy_is_no_change_of_its_spec() {
    let store = store();
    assert!(!store.put_policy(policy(1, by_team())));
    assert!(store.put_policy(policy(2, by_team())));
}

#[test]
fn a_job_has_no_policies_before_the_labels_of_its_namespace_are_known() {
    let store = Store::default();
    store.put_policy(policy(1, by_team()));
    store.put_job(job("a", "x"));
    assert!(store.effective(&job("a", "x")).is_none());
    assert_eq!(store.group_of("a"), None);
    assert_eq!(store.put_namespace("ci", Labels::default()), ["a"]);
    assert!(store.group_of("a").is_some());
}

#[test]
fn a_finished_job_that_is_deleted_before_its_result_is_stored_leaves_a_tombstone() {
    let store = store();
    store.put_job(finished(job("a", "x")));
    let group = store.remove_job("a", None).unwrap();
    assert!(group.is_some() && store.job("a").is_none());
    assert_eq!(store.deleted_jobs(), ["a"]);
    assert_eq!(store.namespace_of("a"), "ci");
    let deleted = store.deleted_job("a").unwrap();
    assert_eq!(deleted.events["ci"], [JobPhase::Started, JobPhase::Completed]);
    store.forget_deleted_job("a");
    assert!(store.deleted_jobs().is_empty());

    let mut marked = finished(job("b", "x"));
    marked.annotations.insert(keys::STATUS.into(), "completed".into());
    marked.annotations.insert(keys::RESULTS.into(), "job-b-results".into());
    store.put_job(marked);
    store.remove_job("b", None);
    store.put_job(job("c", "x"));
    store.remove_job("c", None);
    assert!(store.deleted_jobs().is_empty(), "one was harvested, the other one never finished");
}

#[test]
fn the_last_state_that_a_watch_delivers_counts_for_a_deleted_job() {
    let store = store();
    store.put_job(job("a", "x"));
    store.remove_job("a", Some(finished(job("a", "x"))));
    assert_eq!(store.deleted_jobs(), ["a"]);
    let (drained, complete) = store.drain_finished();
    assert_eq!((drained.len(), complete), (1, true));
    assert!(store.drain_finished().0.is_empty());
}

#[test]
fn the_started_event_is_delivered_once_and_a_result_lists_the_others() {
    let store = store();
    store.put_job(job("a", "x"));
    assert_eq!(store.jobs_with_pending_events("ci"), ["a"]);
    store.set_started_delivered("a", "ci");
    assert!(store.jobs_with_pending_events("ci").is_empty());
    store.put_job(finished(job("a", "x")));
    assert_eq!(store.events_of(&finished(job("a", "x")))["ci"], [JobPhase::Completed]);
    let result = ResultRef { outbox: vec!["ci".into()], ..ResultRef::at(StorageKind::ConfigMap, "ci", "r") };
    store.put_result("a", result);
    assert_eq!(store.jobs_with_pending_events("ci"), ["a"]);
}

#[test]
fn our_own_write_of_a_result_keeps_the_fields_from_the_watch() {
    let store = store();
    let name = "job-a-results";
    store.put_result("a", ResultRef { bytes: 7, lost: 1, policies: "p".into(), ..at(name) });
    store.put_result("a", ResultRef { pending: true, ..at(name) });
    let results = store.results_of(&job("a", "x"));
    assert_eq!((results.len(), results[0].bytes, results[0].lost, results[0].pending), (1, 7, 1, true));
    store.put_result("a", at("a-copy"));
    assert_eq!((store.results_of(&job("a", "x")).len(), store.results_of_uid("a").len()), (1, 2));
}

#[test]
fn without_a_seal_an_object_is_a_result_only_of_a_job_on_which_the_sink_recorded_it() {
    let store = store();
    let name = "job-a-results";
    store.put_result("a", ResultRef::at(StorageKind::ConfigMap, "ci", name));
    store.put_result("a", ResultRef::at(StorageKind::ConfigMap, "evil", name));
    let mut known = finished(job("a", "x"));
    assert!(store.results_of(&known).is_empty());
    known.annotations.insert(keys::STATUS.into(), "completed".into());
    known.annotations.insert(keys::RESULTS.into(), name.into());
    let results = store.results_of(&known);
    assert_eq!((results.len(), results[0].namespace.as_str()), (1, "ci"));
    // It announces nothing, counts nowhere, and does not say where the Job is.
    assert!(store.results_of_uid("a").is_empty() && store.results().is_empty());
    assert_eq!(store.namespace_of("a"), "");
}

#[test]
fn what_an_object_of_another_namespace_says_about_a_job_is_not_asked() {
    let store = store();
    store.put_job(finished(job("a", "x")));
    assert!(store.job_in("ci", "a").is_some() && store.job_in("evil", "a").is_none());
    // Its harvest may be in progress, whatever claims to be its result.
    for has_result in [false, true] {
        assert!(store.awaits_result("ci", "a", has_result) && !store.awaits_result("evil", "a", has_result));
    }
    store.remove_job("a", None);
    assert!(store.awaits_result("ci", "a", false) && !store.awaits_result("evil", "a", false));
}

#[test]
fn the_inventory_and_the_references_to_results_change_together() {
    let store = store();
    let at = |uid: &str| at(&format!("job-{uid}-results"));
    let names = |uids: &[&str]| -> (Vec<String>, Vec<String>) {
        let names: Vec<String> = uids.iter().map(|uid| format!("job-{uid}-results")).collect();
        (names.clone(), names)
    };
    ["a", "b", "c"].iter().for_each(|uid| store.put_stored(stored(uid), at(uid)));
    assert_eq!(stored_names(&store), names(&["a", "b", "c"]));
    store.remove_stored(&at("a"), Some("a"));
    assert_eq!(stored_names(&store), names(&["b", "c"]));
    store.retain_stored(StorageKind::Secret, |_, _| false);
    assert_eq!(stored_names(&store), names(&["b", "c"]), "a list of Secrets does not concern ConfigMaps");
    store.retain_stored(StorageKind::ConfigMap, |namespace, name| {
        (namespace, name) == ("ci", "job-c-results")
    });
    assert_eq!(stored_names(&store), names(&["c"]));
    store.remove_stored(&at("c"), None);
    assert_eq!(stored_names(&store), names(&[]));
}

#[test]
fn a_result_is_removed_for_one_job_without_the_reference_of_another() {
    let store = store();
    let at = || at("job-a-results");
    store.put_stored(stored("a"), at());
    store.put_result("b", at());
    store.remove_stored(&at(), Some("a"));
    assert_eq!((store.results_of_uid("a").len(), store.results_of_uid("b").len()), (0, 1));
}

#[test]
fn a_job_whose_labels_were_dropped_has_no_policies_until_it_is_listed_again() {
    let store = store();
    let many = || {
        let mut many = job("a", "x");
        many.labels.extend((0..10_000).map(|n| (format!("l{n:05}"), String::new())));
        many
    };
    store.put_job(many());
    let kept = store.job("a").unwrap();
    assert!(kept.labels.len() < 50 && kept.labels["team"] == "x", "{} labels", kept.labels.len());
    assert!(store.group_of("a").is_some() && store.effective(&kept).is_some());
    // It selects Jobs without a label that the Job has, and that was dropped.
    let selector = json!({"matchExpressions": [{"key": "l09999", "operator": "DoesNotExist"}]});
    store.put_policy(policy(2, json!({"jobSelector": selector, "cleanup": {}, "results": {}})));
    assert!(store.lacks_labels());
    assert!(store.effective(&kept).is_none() && store.matching(&kept).is_none());
    assert_eq!(store.group_of("a"), None);
    store.put_job(job("b", "x"));
    assert!(store.effective(&store.job("b").unwrap()).is_some(), "others are judged as before");
    store.list_began();
    store.put_job(many());
    assert!(!store.lacks_labels());
    let listed = store.job("a").unwrap();
    assert!(listed.labels.contains_key("l09999"));
    assert!(store.matching(&listed).unwrap().is_empty(), "the policy does not select it");
}

#[test]
fn the_last_state_of_a_deleted_job_is_trimmed_too() {
    let store = store();
    store.put_job(job("a", "x"));
    let mut last = finished(job("a", "x"));
    last.labels.extend((0..10_000).map(|n| (format!("l{n:05}"), String::new())));
    store.remove_job("a", Some(last));
    assert!(store.deleted_job("a").unwrap().job.labels.len() < 50);
}

#[test]
fn a_policy_of_another_namespace_or_without_room_makes_no_job_incomplete() {
    let store = store();
    let mut many = job("a", "x");
    many.labels.extend((0..10_000).map(|n| (format!("l{n:05}"), String::new())));
    let put = |namespace: &str, name: &str, second: u32, keys: std::ops::Range<usize>| {
        let metadata = json!({"name": name, "namespace": namespace, "uid": name, "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
        let labels: Labels = keys.map(|n| (format!("l{n:05}"), String::new())).collect();
        let spec = json!({"jobSelector": {"matchLabels": labels}});
        store.put_policy(policy_entry(1, job_policy(metadata, spec)));
    };
    put("ci", "older", 1, 0..63);
    store.put_job(many);
    let kept = store.job("a").unwrap();
    put("qa", "of-others", 1, 9_000..9_032);
    put("ci", "newer", 2, 9_999..10_000);
    assert!(!store.lacks_labels() && store.effective(&kept).is_some());
    store.remove_policies(|policy| policy.name == "older");
    put("ci", "newer", 2, 9_999..10_000);
    assert!(store.lacks_labels() && store.effective(&kept).is_none(), "there is room for the newer one");
}

#[test]
fn of_a_policy_without_room_the_content_is_forgotten_until_it_is_put_again() {
    let store = store();
    let made = |second: usize| {
        let created = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let metadata = json!({"name": format!("p-{second}"), "namespace": "ci", "uid": second.to_string(),
            "generation": 1, "creationTimestamp": created});
        policy_entry(1, job_policy(metadata, json!({"results": {}})))
    };
    store.remove_policies(|_| true);
    let put = |second: usize| {
        let entry = made(second);
        let content = Arc::downgrade(entry.policy.as_ref().unwrap());
        store.put_policy(entry);
        content
    };
    let contents: Vec<_> = (0..NAMESPACE_POLICIES_MAX + 3).map(put).collect();
    let kept = contents.iter().filter(|content| content.upgrade().is_some()).count();
    assert_eq!(kept, NAMESPACE_POLICIES_MAX);
    assert_eq!(store.policy_entries().len(), NAMESPACE_POLICIES_MAX + 3, "their statuses are written");
    let missing = |second: usize| {
        let entries = store.policy_entries().into_iter();
        let mut found = entries.filter(|entry| entry.reference.uid == second.to_string());
        found.next().unwrap().policy.err()
    };
    let first_beyond = NAMESPACE_POLICIES_MAX;
    assert_eq!(missing(first_beyond), Some(MissingPolicy::NoRoom));
    store.remove_policies(|known| known.uid == "0");
    assert_eq!(missing(first_beyond), Some(MissingPolicy::Awaited));
    assert_eq!(missing(first_beyond + 1), Some(MissingPolicy::NoRoom));
    assert!(store.has_unreadable_policy("ci") && !store.has_unreadable_policy("qa"));
    assert!(store.put_policy(made(first_beyond)), "Jobs are looked at again");
    assert_eq!(missing(first_beyond), None);
    assert!(!store.has_unreadable_policy("ci"));

    // A list is read with the same bound, in any order.
    let mut listed = ListedPolicies::default();
    let mut contents = Vec::new();
    for second in (0..400).rev() {
        let entry = made(second);
        contents.push(Arc::downgrade(entry.policy.as_ref().unwrap()));
        listed.push(entry);
        let kept = contents.iter().filter(|content| content.upgrade().is_some()).count();
        assert!(kept < NAMESPACE_POLICIES_MAX + 32, "{kept}");
    }
    store.replace_policies(PolicyKind::ClusterJobPolicy, ListedPolicies::default());
    assert_eq!(store.policies().iter().count(), NAMESPACE_POLICIES_MAX, "of the other kind");
    assert!(store.replace_policies(PolicyKind::JobPolicy, listed));
    assert_eq!(store.policies().iter().count(), NAMESPACE_POLICIES_MAX);
    assert_eq!((missing(0), missing(399)), (None, Some(MissingPolicy::NoRoom)));
    assert!(store.replace_policies(PolicyKind::JobPolicy, ListedPolicies::default()));
    assert_eq!((store.policies().iter().count(), store.policy_entries().len()), (0, 0));
}
