use proptest::prelude::*;

use super::*;
use job_handler_shared::result::metadata::RetentionFacts;
use job_handler_shared::result::storage_kind::StorageKind;
use std::sync::Arc;

const NOW: i64 = 1_000;

fn stored(
    n: usize,
    namespace: u8,
    group: Option<u8>,
    created: i64,
    bytes: u64,
    pending: bool,
) -> StoredResult {
    let created = Timestamp::from_second(created).unwrap();
    StoredResult {
        kind: StorageKind::default(),
        namespace: format!("ns{namespace}"),
        name: format!("job-{n}-results"),
        uid: format!("{n:03}"),
        group: group.map(|g| format!("g{g}").into()),
        pending,
        facts: Arc::new(RetentionFacts { created, finished: created, bytes, ..RetentionFacts::default() }),
    }
}

fn budget_of(max_bytes: u64) -> ClusterBudget {
    ClusterBudget { max_bytes, ..ClusterBudget::default() }
}

/// The simplest implementation: while a bound is exceeded, the oldest deletable result is deleted.
fn oracle(all: &[StoredResult], bounds: &[Option<RetentionBounds>], cluster: Option<u64>) -> Vec<String> {
    let mut left: Vec<usize> = (0..all.len()).collect();
    left.sort_by_key(|n| (all[*n].facts.created, all[*n].uid.clone()));
    let newest = |n: usize| {
        all[n].group.is_some()
            && !all.iter().any(|o| {
                (&o.namespace, &o.group) == (&all[n].namespace, &all[n].group)
                    && (o.facts.created, &o.uid) > (all[n].facts.created, &all[n].uid)
            })
    };
    let expendable = |n: usize| !all[n].pending && bounds[n].is_some();
    let free = |n: usize| !newest(n) && expendable(n);
    left.retain(|n| {
        let age = NOW - all[*n].facts.finished.as_second();
        !(free(*n) && age >= bounds[*n].unwrap().ttl_seconds as i64)
    });
    let drop_while = |left: &mut Vec<usize>, broken: &dyn Fn(&[usize], usize) -> bool| {
        while let Some(at) = left.iter().position(|n| broken(left, *n)) {
            left.remove(at);
        }
    };
    // The largest bound among the results that the earlier rules left.
    let then = left.clone();
    drop_while(&mut left, &|left, n| {
        let same = |o: &&usize| (&all[**o].namespace, &all[**o].group) == (&all[n].namespace, &all[n].group);
        let most = then.iter().filter(same).filter_map(|o| bounds[*o]).map(|b| b.max_per_group).max();
        free(n) && all[n].group.is_some() && left.iter().filter(same).count() > most.unwrap_or(0) as usize
    });
    let then = left.clone();
    for last in [false, true] {
        drop_while(&mut left, &|left, n| {
            let same = |o: &&usize| all[**o].namespace == all[n].namespace;
            let most = then.iter().filter(same).filter_map(|o| bounds[*o]).map(|b| b.max_bytes).max();
            let used = left.iter().filter(same).map(|o| all[*o].facts.bytes).sum::<u64>();
            newest(n) == last && expendable(n) && used > most.unwrap_or(0)
        });
    }
    let used = |left: &[usize], namespace: &str| {
        left.iter().filter(|o| all[**o].namespace == namespace).map(|o| all[*o].facts.bytes).sum::<u64>()
    };
    if let Some(most) = cluster {
        // Byte by byte, those that use more first, until the budget is used up.
        let mut needs = ["ns0", "ns1", "ns2"].map(|namespace| (used(&left, namespace), namespace));
        needs.sort();
        let turns = (1..=needs[2].0).flat_map(|byte| needs.iter().rev().filter(move |need| need.0 >= byte));
        let mut allowed: HashMap<&str, u64> = HashMap::new();
        for (_, namespace) in turns.take(most as usize) {
            *allowed.entry(namespace).or_default() += 1;
        }
        let allowed = |namespace: &str| allowed.get(namespace).copied().unwrap_or(0);
        for last in [false, true] {
            drop_while(&mut left, &|left, n| {
                newest(n) == last && used(left, &all[n].namespace) > allowed(&all[n].namespace)
            });
        }
    }
    let mut gone: Vec<String> =
        (0..all.len()).filter(|n| !left.contains(n)).map(|n| all[n].uid.clone()).collect();
    gone.sort();
    gone
}

proptest! {
    #[test]
    fn the_plan_equals_the_simplest_implementation(
        all in prop::collection::vec(
            ((0u8..3, prop::option::weighted(0.8, 0u8..2)), 990i64..1_000, 0u64..6, prop::bool::weighted(0.1),
                prop::option::weighted(0.9, (0u64..12, 1u32..4, 0u64..20))),
            0..24),
        cluster in prop::option::of(0u64..40),
    ) {
        let bounds: Vec<Option<RetentionBounds>> = all.iter().map(|(.., b)| {
            b.map(|(ttl_seconds, max_per_group, max_bytes)| RetentionBounds { ttl_seconds, max_per_group, max_bytes })
        }).collect();
        let all: Vec<StoredResult> = all.iter().enumerate().map(|(n, ((ns, group), created, bytes, pending, _))| {
            stored(n, *ns, *group, *created, *bytes, *pending)
        }).collect();
        let of = |s: &StoredResult| bounds[s.uid.parse::<usize>().unwrap()];
        let now = Timestamp::from_second(NOW).unwrap();
        let budget = cluster.map(budget_of);
        let mut gone: Vec<String> =
            plan(&all, of, budget.as_ref(), now).iter().map(|(n, _)| all[*n].uid.clone()).collect();
        gone.sort();
        prop_assert_eq!(gone, oracle(&all, &bounds, cluster));
    }
}

#[test]
fn each_bound_deletes_the_oldest_first() {
    let wide = RetentionBounds { ttl_seconds: 1_000, max_per_group: 10, max_bytes: 1_000 };
    let now = Timestamp::from_second(NOW).unwrap();
    let all: Vec<_> = (0..4).map(|n| stored(n, 0, Some(0), 990 + n as i64, 10, false)).collect();
    let gone = |bounds: Option<RetentionBounds>, cluster: Option<u64>| {
        let plan = plan(&all, |_| bounds, cluster.map(budget_of).as_ref(), now);
        plan.into_iter().map(|(n, why)| (n, why.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(gone(Some(wide), None), []);
    assert_eq!(gone(Some(RetentionBounds { ttl_seconds: 9, ..wide }), None), [(0, "age"), (1, "age")]);
    assert_eq!(gone(Some(RetentionBounds { ttl_seconds: 0, ..wide }), None).len(), 3, "never the newest");
    assert_eq!(gone(Some(RetentionBounds { max_per_group: 3, ..wide }), None), [(0, "number")]);
    assert_eq!(gone(Some(RetentionBounds { max_bytes: 39, ..wide }), None), [(0, "namespace-budget")]);
    let all_but_the_newest = gone(Some(RetentionBounds { max_bytes: 10, ..wide }), None);
    assert_eq!(all_but_the_newest, [0, 1, 2].map(|n| (n, "namespace-budget")));
    assert_eq!(gone(Some(RetentionBounds { max_bytes: 9, ..wide }), None).len(), 4, "bytes count more");
    assert_eq!(gone(None, Some(20)), [(0, "cluster-budget"), (1, "cluster-budget")]);
}

/// A tenant chooses the groups of his Jobs.
#[test]
fn a_group_for_each_job_does_not_evade_the_bounds_of_bytes() {
    let wide = RetentionBounds { ttl_seconds: 1_000, max_per_group: 10, max_bytes: 20 };
    let now = Timestamp::from_second(NOW).unwrap();
    let mut all: Vec<_> = (0..4).map(|n| stored(n, 0, Some(n as u8), 990 + n as i64, 10, false)).collect();
    all.push(stored(4, 0, Some(0), 989, 1, true));
    all.push(stored(5, 1, None, 1, 10, false));
    let gone = |bounds, cluster: Option<u64>| {
        let plan = plan(&all, |_| bounds, cluster.map(budget_of).as_ref(), now);
        plan.into_iter().map(|(n, why)| (n, why.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(gone(Some(wide), None), [0, 1, 2].map(|n| (n, "namespace-budget")));
    let expected = [4, 0, 1].map(|n| (n, "cluster-budget"));
    assert_eq!(gone(None, Some(30)), expected, "the other namespace is within its share");
}

#[test]
fn namespaces_take_turns() {
    let namespaces = [1, 1, 1, 0, 2, 0].into_iter().enumerate();
    let all: Vec<_> = namespaces.map(|(n, namespace)| stored(n, namespace, None, 1, 1, false)).collect();
    let planned = (0..6).map(|n| (n, RemovalReason::Age)).collect();
    let order: Vec<usize> = in_turns(&all, planned).into_iter().map(|(n, _)| n).collect();
    assert_eq!(order, [0, 3, 4, 1, 5, 2]);
}

/// Whatever a namespace claims, and however many results it makes.
#[test]
fn the_cluster_budget_costs_no_namespace_within_its_share() {
    let now = Timestamp::from_second(NOW).unwrap();
    let mut all: Vec<_> = (0..4).map(|n| stored(n, 0, None, 900 + n as i64, 10, false)).collect();
    all.extend((4..8).map(|n| stored(n, 1, None, 990 + n as i64, 20, false)));
    all.push(stored(8, 2, None, 999, 9_000_000_000_000_000_000, false));
    all.push(stored(9, 2, None, 998, u64::MAX, false));
    let gone = |max_bytes, shares: &[(&str, u32)]| -> Vec<usize> {
        let shares = shares.iter().map(|(namespace, share)| ((*namespace).to_owned(), *share)).collect();
        let budget = ClusterBudget { max_bytes, shares };
        plan(&all, |_| None, Some(&budget), now).into_iter().map(|(n, _)| n).collect()
    };
    assert_eq!(gone(120 + 120, &[]), [9, 8], "the others have what they need");
    assert_eq!(gone(120, &[]), [4, 5, 9, 8], "40 for each");
    assert_eq!(gone(90, &[]), [0, 4, 5, 6, 9, 8], "30 for each");
    assert_eq!(gone(120, &[("ns1", 4)]), [0, 1, 9, 8], "20 for each, and 80 for the second");
}
