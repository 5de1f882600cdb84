//! Decides which stored results to delete. Pure.
//!
//! By age, by number per group, by bytes per namespace, by bytes in all: in this order, the oldest first. The newest result
//! of a group stays, so that the last run can be looked up; if nothing else is left to delete, bytes count more: with a group
//! for each Job, all results are the newest of theirs.
//!
//! No bound deletes one namespace's results because of another's: the cluster's budget is shared ([`ClusterBudget`]), and a
//! namespace within its share loses nothing.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use job_handler_shared::policy::results::Results;

use crate::model::stored_result::StoredResult;

/// How long a result stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetentionBounds {
    /// Its maximum age, seconds.
    pub(crate) ttl_seconds: u64,
    /// Results of its group.
    pub(crate) max_per_group: u32,
    /// Bytes of all results in its namespace.
    pub(crate) max_bytes: u64,
}

impl From<&Results> for RetentionBounds {
    fn from(results: &Results) -> Self {
        Self {
            ttl_seconds: results.ttl_seconds,
            max_per_group: results.max_per_group,
            max_bytes: results.max_bytes_per_namespace.0,
        }
    }
}

impl RetentionBounds {
    /// The larger one of each bound, so that no policy deletes what another one keeps.
    #[must_use]
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            ttl_seconds: self.ttl_seconds.max(other.ttl_seconds),
            max_per_group: self.max_per_group.max(other.max_per_group),
            max_bytes: self.max_bytes.max(other.max_bytes),
        }
    }
}

/// The bytes of all results of the cluster. The namespaces that have results share them; what one leaves unused, the others
/// may use, until it needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterBudget {
    /// Bytes of all results.
    pub max_bytes: u64,
    /// Shares of namespaces, at least 1; of namespaces that are not listed it is 1.
    pub shares: BTreeMap<String, u32>,
}

impl ClusterBudget {
    /// What each namespace may keep of the bytes that it uses (max-min fairness: those that need less than their share get
    /// what they need, and the rest is shared by the others).
    fn allowances<'a>(&self, used: &HashMap<&'a str, u128>) -> HashMap<&'a str, u128> {
        let share = |namespace: &str| u128::from(self.shares.get(namespace).copied().unwrap_or(1).max(1));
        let mut namespaces: Vec<(&str, u128, u128)> =
            used.iter().map(|(&namespace, &bytes)| (namespace, bytes, share(namespace))).collect();
        // By bytes per share, without a division.
        namespaces.sort_by_key(|(namespace, ..)| *namespace);
        namespaces.sort_by(|(_, a, of_a), (_, b, of_b)| (a * of_b).cmp(&(b * of_a)));
        let mut bytes_left = u128::from(self.max_bytes);
        let mut shares_left: u128 = namespaces.iter().map(|(.., share)| share).sum();
        let mut allowances = HashMap::new();
        for (namespace, bytes, share) in namespaces {
            // `shares_left` contains `share`, which is at least 1.
            let fair = bytes_left.saturating_mul(share) / shares_left.max(1);
            let allowed = fair.min(bytes);
            allowances.insert(namespace, allowed);
            bytes_left -= allowed;
            shares_left -= share;
        }
        allowances
    }
}

/// Why a result is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RemovalReason {
    /// It is older than `ttlSeconds`.
    Age,
    /// Its group has `maxPerGroup` newer ones.
    Number,
    /// Its namespace has more than `maxBytesPerNamespace`.
    Namespace,
    /// All results together exceed the sink's budget, and those of its namespace their share.
    Cluster,
}

impl RemovalReason {
    /// The label value in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Number => "number",
            Self::Namespace => "namespace-budget",
            Self::Cluster => "cluster-budget",
        }
    }
}

/// The results to delete, by their index in `results`, oldest first. `bounds` returns none for a result that no policy
/// requests any more: only the cluster's budget applies to it. The same holds for a result with pending announcements:
/// a full etcd harms everyone, a receiver that has been away for long only itself.
pub(crate) fn plan(
    results: &[StoredResult],
    bounds: impl Fn(&StoredResult) -> Option<RetentionBounds>,
    budget: Option<&ClusterBudget>,
    now: Timestamp,
) -> Vec<(usize, RemovalReason)> {
    let mut oldest_first: Vec<usize> = (0..results.len()).collect();
    oldest_first.sort_by(|a, b| results[*a].rank().cmp(&results[*b].rank()));
    let bounds: Vec<Option<RetentionBounds>> = results.iter().map(bounds).collect();
    let mut newest: HashMap<(&str, &str), usize> = HashMap::new();
    for n in &oldest_first {
        newest.extend(results[*n].group().map(|group| (group, *n)));
    }
    let is_newest = |n: usize| results[n].group().is_some_and(|group| newest.get(&group) == Some(&n));
    let is_expendable = |n: usize| !results[n].pending && bounds[n].is_some();
    let is_deletable = |n: usize| is_expendable(n) && !is_newest(n);
    let newest_last = || {
        let (newest, others): (Vec<usize>, Vec<usize>) = oldest_first.iter().partition(|n| is_newest(**n));
        others.into_iter().chain(newest)
    };
    let mut gone: Vec<Option<RemovalReason>> = vec![None; results.len()];

    for n in &oldest_first {
        let old = |bound: &RetentionBounds| {
            let age = now.duration_since(results[*n].facts.finished).as_secs();
            u64::try_from(age).is_ok_and(|age| age >= bound.ttl_seconds)
        };
        if is_deletable(*n) && bounds[*n].as_ref().is_some_and(old) {
            gone[*n] = Some(RemovalReason::Age);
        }
    }

    // Per group and per namespace: the sum of what remains, and the largest bound of its results.
    let mut groups: HashMap<(&str, &str), (u64, u64)> = HashMap::new();
    for n in oldest_first.iter().filter(|n| gone[**n].is_none()) {
        let Some(group) = results[*n].group() else { continue };
        let (number, most) = groups.entry(group).or_default();
        *number += 1;
        *most = (*most).max(bounds[*n].map_or(0, |bound| u64::from(bound.max_per_group)));
    }
    for n in &oldest_first {
        let Some((number, most)) = results[*n].group().and_then(|group| groups.get_mut(&group)) else {
            continue;
        };
        if number > most && gone[*n].is_none() && is_deletable(*n) {
            gone[*n] = Some(RemovalReason::Number);
            *number -= 1;
        }
    }

    let mut namespaces: HashMap<&str, (u64, u64)> = HashMap::new();
    for n in oldest_first.iter().filter(|n| gone[**n].is_none()) {
        let (bytes, most) = namespaces.entry(&results[*n].namespace).or_default();
        *bytes = bytes.saturating_add(results[*n].facts.bytes);
        *most = (*most).max(bounds[*n].map_or(0, |bound| bound.max_bytes));
    }
    for n in newest_last() {
        let Some((bytes, most)) = namespaces.get_mut(results[n].namespace.as_str()) else { continue };
        if bytes > most && gone[n].is_none() && is_expendable(n) {
            gone[n] = Some(RemovalReason::Namespace);
            *bytes = bytes.saturating_sub(results[n].facts.bytes);
        }
    }

    if let Some(budget) = budget {
        let mut used: HashMap<&str, u128> = HashMap::new();
        for n in oldest_first.iter().filter(|n| gone[**n].is_none()) {
            *used.entry(&results[*n].namespace).or_default() += u128::from(results[*n].facts.bytes);
        }
        let allowances = budget.allowances(&used);
        for n in newest_last() {
            let namespace = results[n].namespace.as_str();
            let Some((bytes, most)) = used.get_mut(namespace).zip(allowances.get(namespace)) else {
                continue;
            };
            if *bytes > *most && gone[n].is_none() {
                gone[n] = Some(RemovalReason::Cluster);
                *bytes -= u128::from(results[n].facts.bytes);
            }
        }
    }
    oldest_first.into_iter().filter_map(|n| Some((n, gone[n]?))).collect()
}

/// The same results, those of each namespace in turn: results that cannot be deleted (a finalizer holds them, say) must not
/// keep those of other namespaces from being deleted.
pub(crate) fn in_turns(
    results: &[StoredResult],
    mut planned: Vec<(usize, RemovalReason)>,
) -> Vec<(usize, RemovalReason)> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let turns = planned.iter().map(|(n, _)| {
        let number = numbers.entry(&results[*n].namespace).or_default();
        *number += 1;
        (*n, *number)
    });
    let turns: HashMap<usize, usize> = turns.collect();
    planned.sort_by_key(|(n, _)| turns.get(n).copied());
    planned
}

#[cfg(test)]
mod tests {
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
            facts: Arc::new(RetentionFacts {
                created,
                finished: created,
                bytes,
                ..RetentionFacts::default()
            }),
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
            let same =
                |o: &&usize| (&all[**o].namespace, &all[**o].group) == (&all[n].namespace, &all[n].group);
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
            let turns =
                (1..=needs[2].0).flat_map(|byte| needs.iter().rev().filter(move |need| need.0 >= byte));
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
        let mut all: Vec<_> =
            (0..4).map(|n| stored(n, 0, Some(n as u8), 990 + n as i64, 10, false)).collect();
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
}
