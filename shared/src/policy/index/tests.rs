use serde_json::json;

use super::*;
use crate::{
    policy::namespace_share::{NAMESPACE_POLICIES_MAX, NAMESPACE_POLICY_BYTES_MAX},
    testing::policies::{cluster_job_policy, job_policy},
};

fn policy(name: &str, generation: i64, mode: &str) -> Arc<Policy> {
    let metadata = json!({"name": name, "namespace": "ci", "uid": name, "generation": generation});
    job_policy(metadata, json!({"mode": mode, "results": {}}))
}

#[test]
fn the_sets_follow_the_policies() {
    let mut index = PolicyIndex::default();
    assert!(index.put("a", Some(policy("a", 1, "Enforce"))));
    assert!(!index.put("a", Some(policy("a", 1, "Enforce"))), "nothing has changed");
    assert!(index.put("b", Some(policy("b", 1, "Warn"))));
    assert_eq!((index.all().iter().count(), index.enforced().iter().count()), (2, 1));
    assert!(index.put("b", Some(policy("b", 2, "Enforce"))));
    assert_eq!(index.enforced().iter().count(), 2);
    assert!(index.put("b", None) && !index.put("b", None), "a policy that cannot be read selects nothing");
    let mut listed = PolicyIndex::default();
    ["c", "d"].into_iter().for_each(|name| listed.collect(name, policy(name, 1, "Enforce")));
    index.replace(|key| *key == "a", listed);
    assert_eq!(index.all().iter().count(), 2);
    assert!(index.retain(|key| *key == "c") && !index.retain(|key| *key == "c"));
    assert_eq!(index.all().iter().count(), 1);
}

#[test]
fn of_too_many_policies_of_a_namespace_the_oldest_apply() {
    let made = |namespace: Option<&str>, name: String, second: usize| {
        let created = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let metadata =
            json!({"name": name, "namespace": namespace, "uid": name, "creationTimestamp": created});
        match namespace {
            Some(_) => (name, Some(job_policy(metadata, json!({"results": {}})))),
            None => (name, Some(cluster_job_policy(metadata, json!({"results": {}})))),
        }
    };
    let mut index = PolicyIndex::default();
    let max = NAMESPACE_POLICIES_MAX;
    // The names are in the reverse order of the ages: a name does not make a policy older.
    let crowd = (0..max + 30).map(|n| made(Some("ci"), format!("p-{:03}", 999 - n), n));
    index.put_all(crowd.chain([made(Some("qa"), "other".to_owned(), 900)]));
    index.put_all((0..max + 30).map(|n| made(None, format!("wide-{n}"), n)));
    let applies = |index: &PolicyIndex<String>, name: &str| {
        let names: Vec<_> = index.all().iter().map(|policy| policy.reference.name.clone()).collect();
        assert_eq!(names.len(), index.enforced().iter().count());
        names.iter().any(|known| known == name)
    };
    let (oldest, last, first_beyond) = ("p-999", format!("p-{}", 1000 - max), format!("p-{}", 999 - max));
    assert!(applies(&index, oldest) && applies(&index, &last) && !applies(&index, &first_beyond));
    assert!(applies(&index, "other"), "of another namespace");
    assert!(applies(&index, &format!("wide-{}", max + 29)), "of the cluster's administrators");
    assert!(index.awaited().is_empty());
    index.put(oldest.to_owned(), None);
    assert!(!applies(&index, &first_beyond) && index.awaited() == [first_beyond.clone()]);
    let again = made(Some("ci"), first_beyond.clone(), max);
    index.put_all([again]);
    assert!(applies(&index, &first_beyond) && index.awaited().is_empty(), "there is room again");
}

#[test]
fn of_policies_without_room_the_content_is_forgotten() {
    let values: Vec<String> = (0..1000).map(|n| format!("{n:063}")).collect();
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
    let large = |n: usize| {
        let created = format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
        let metadata = json!({"name": format!("p-{n:03}"), "namespace": "ci", "uid": n.to_string(),
            "generation": 1, "creationTimestamp": created});
        job_policy(metadata, json!({"jobSelector": selector}))
    };
    let whole =
        |index: &PolicyIndex<usize>| index.policies.values().filter(|stored| stored.whole.is_some()).count();
    let (mut index, mut listed) = (PolicyIndex::default(), PolicyIndex::default());
    let fits = NAMESPACE_POLICY_BYTES_MAX / large(0).bytes;
    assert!((10..20).contains(&fits));
    // A list is in the order of names, whatever the ages.
    for n in (0..500).rev() {
        listed.collect(n, large(n));
        assert!(whole(&listed) < fits + LISTED_WHOLE);
    }
    index.replace(|_| true, listed);
    let names: Vec<&str> = index.all().iter().map(|policy| &*policy.reference.name).collect();
    assert_eq!((names.len(), names[0], whole(&index)), (fits, "p-000", fits));
    assert!(!index.put(400, Some(large(400))), "another status");
    // One without room takes none from a small one.
    let metadata = json!({"name": "small", "namespace": "ci", "uid": "s", "generation": 1,
        "creationTimestamp": "2026-01-02T00:00:00Z"});
    assert!(index.put(999, Some(job_policy(metadata, json!({})))));
    assert_eq!(index.all().iter().count(), fits + 1);
}

#[test]
fn policies_whose_label_keys_have_no_room_do_not_apply() {
    let made = |namespace: Option<&str>, second: usize, keys: std::ops::Range<usize>| {
        let name = format!("{}-{second}", namespace.unwrap_or_default());
        let metadata = json!({"name": name, "namespace": namespace, "uid": name,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
        let labels: Labels = keys.map(|n| (format!("l{n}"), String::new())).collect();
        let spec = json!({"jobSelector": {"matchLabels": labels}});
        let policy = match namespace {
            Some(_) => job_policy(metadata, spec),
            None => cluster_job_policy(metadata, spec),
        };
        (name, Some(policy))
    };
    let mut index = PolicyIndex::default();
    index.put_all([
        made(Some("ci"), 1, 0..32),
        made(Some("ci"), 2, 0..63),
        made(Some("ci"), 3, 62..65),
        made(Some("ci"), 4, 63..64),
        made(Some("ci"), 5, 64..65),
        made(Some("qa"), 1, 64..80),
        made(None, 1, 0..90),
    ]);
    let applying = |index: &PolicyIndex<String>| -> Vec<String> {
        index.all().iter().map(|policy| policy.reference.name.clone()).collect()
    };
    assert_eq!(applying(&index), ["ci-1", "ci-2", "ci-4", "qa-1", "-1"]);
    index.put("ci-2".to_owned(), None);
    assert_eq!(index.awaited(), ["ci-3", "ci-5"]);
    index.put_all([made(Some("ci"), 3, 62..65), made(Some("ci"), 5, 64..65)]);
    assert_eq!(applying(&index), ["ci-1", "ci-3", "ci-4", "ci-5", "qa-1", "-1"], "there is room again");
}

#[test]
fn policies_apply_in_known_namespaces_only() {
    let mut index = PolicyIndex::default();
    index.put("a", Some(policy("a", 1, "Enforce")));
    assert!(index.in_namespace("ci").is_none());
    assert!(index.put_namespace("ci", Labels::new()) && !index.put_namespace("ci", Labels::new()));
    index.put_namespace("qa", Labels::new());
    let matching = |name| index.in_namespace(name).unwrap().matching(&Labels::new()).len();
    assert_eq!((matching("ci"), matching("qa")), (1, 0));
    assert!(index.in_namespace("ci").unwrap().effective(&Labels::new()).results.is_some());
    index.retain_namespaces(|name| name == "qa");
    assert!(index.namespace("ci").is_none());
}

#[test]
fn a_policy_without_room_that_changes_changes_nothing_else() {
    let made = |second: usize, generation: i64| {
        let name = format!("p-{second}");
        let created = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
        let metadata = json!({"name": name, "namespace": "ci", "uid": name, "generation": generation,
            "creationTimestamp": created});
        (second, Some(job_policy(metadata, json!({"results": {}}))))
    };
    let mut index = PolicyIndex::default();
    let max = NAMESPACE_POLICIES_MAX;
    assert!(index.put_all((0..max).map(|n| made(n, 1))));
    let (all, enforced) = (index.all().clone(), index.enforced().clone());
    for generation in 1..4 {
        assert!(!index.put_all((max..max + 3).map(|n| made(n, generation))), "{generation}");
    }
    assert!(!index.put(max + 2, None) && !index.retain(|key| *key <= max), "they did not apply");
    assert!(Arc::ptr_eq(&all, index.all()) && Arc::ptr_eq(&enforced, index.enforced()));
    // One for which there is room is awaited; then it is gone.
    assert!(index.put(0, None) && index.awaited() == [max]);
    let all = index.all().clone();
    assert!(index.put(max, None) && index.awaited().is_empty());
    assert!(Arc::ptr_eq(&all, index.all()));
}

#[test]
fn label_keys_of_a_namespace_outlast_changes_in_others() {
    let by = |namespace: &str, generation: i64, key: &str| {
        let metadata =
            json!({"name": "p", "namespace": namespace, "uid": namespace, "generation": generation});
        let spec = json!({"group": {"type": "Labels", "labelKeys": [key]}});
        (namespace.to_owned(), Some(job_policy(metadata, spec)))
    };
    let keys = |index: &PolicyIndex<String>| {
        ["ci", "other", "qa"].map(|namespace| index.all().label_keys().of(namespace).clone())
    };
    let mut index = PolicyIndex::default();
    index.put_all([by("ci", 1, "app"), by("qa", 1, "app")]);
    let before = keys(&index);
    // Nobody asks for the keys in between.
    index.put_all([by("qa", 2, "tier")]);
    index.put_all([by("qa", 3, "zone")]);
    let now = keys(&index);
    assert!(Arc::ptr_eq(&before[0], &now[0]) && Arc::ptr_eq(&before[1], &now[1]));
    assert!(now[2].contains("zone") && !now[2].contains("tier") && !now[2].contains("app"));
}
