//! Which stored results go. Pure.
//!
//! By age, by number per group, by bytes per namespace, by bytes in all: in this order, the oldest first. The newest of
//! a group never goes, whatever the bounds say: whoever asks how the last run went gets an answer.

use std::collections::HashMap;

use jiff::Timestamp;
use job_handler_shared::policy::results::Results;

use crate::model::stored_result::StoredResult;

/// The bounds of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Seconds that it stays.
    pub ttl_seconds: u64,
    /// Results of its group that stay.
    pub max_per_group: u32,
    /// Bytes of its namespace's results that stay.
    pub max_bytes: u64,
}

impl From<&Results> for Bounds {
    fn from(results: &Results) -> Self {
        Self {
            ttl_seconds: results.ttl_seconds,
            max_per_group: results.max_per_group,
            max_bytes: results.max_bytes_per_namespace.0,
        }
    }
}

impl Bounds {
    /// Towards keeping: the larger of each.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            ttl_seconds: self.ttl_seconds.max(other.ttl_seconds),
            max_per_group: self.max_per_group.max(other.max_per_group),
            max_bytes: self.max_bytes.max(other.max_bytes),
        }
    }
}

/// Why a result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It is older than `ttlSeconds`.
    Age,
    /// Its group has `maxPerGroup` newer ones.
    Number,
    /// Its namespace has more than `maxBytesPerNamespace`.
    Namespace,
    /// All results together are more than the sink's budget.
    Cluster,
}

impl Why {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Number => "number",
            Self::Namespace => "namespace-budget",
            Self::Cluster => "cluster-budget",
        }
    }
}

/// The results that go, by their place in `results`, oldest first. `bounds` is nothing for a result that no policy asks
/// for any more: such a one stays, but for the cluster's budget. What has yet to be told of stays, too, but for that
/// budget: a full etcd would take more from everyone than a receiver that has been away for long.
pub fn plan(
    results: &[StoredResult],
    bounds: impl Fn(&StoredResult) -> Option<Bounds>,
    cluster_max: Option<u64>,
    now: Timestamp,
) -> Vec<(usize, Why)> {
    let mut oldest_first: Vec<usize> = (0..results.len()).collect();
    oldest_first.sort_by(|a, b| results[*a].rank().cmp(&results[*b].rank()));
    let bounds: Vec<Option<Bounds>> = results.iter().map(bounds).collect();
    let mut newest: HashMap<(&str, &str), usize> = HashMap::new();
    for n in &oldest_first {
        newest.extend(results[*n].group().map(|group| (group, *n)));
    }
    let is_newest = |n: usize| results[n].group().is_some_and(|group| newest.get(&group) == Some(&n));
    let may_go = |n: usize| !results[n].pending && bounds[n].is_some() && !is_newest(n);
    let mut gone: Vec<Option<Why>> = vec![None; results.len()];

    for n in &oldest_first {
        let old = |bound: &Bounds| {
            let age = now.duration_since(results[*n].facts.finished).as_secs();
            u64::try_from(age).is_ok_and(|age| age >= bound.ttl_seconds)
        };
        if may_go(*n) && bounds[*n].as_ref().is_some_and(old) {
            gone[*n] = Some(Why::Age);
        }
    }

    // What a group or a namespace has: the sum of what is left, and the largest bound that its results have.
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
        if number > most && gone[*n].is_none() && may_go(*n) {
            gone[*n] = Some(Why::Number);
            *number -= 1;
        }
    }

    let mut namespaces: HashMap<&str, (u64, u64)> = HashMap::new();
    for n in oldest_first.iter().filter(|n| gone[**n].is_none()) {
        let (bytes, most) = namespaces.entry(&results[*n].namespace).or_default();
        *bytes = bytes.saturating_add(results[*n].facts.bytes);
        *most = (*most).max(bounds[*n].map_or(0, |bound| bound.max_bytes));
    }
    for n in &oldest_first {
        let Some((bytes, most)) = namespaces.get_mut(results[*n].namespace.as_str()) else { continue };
        if bytes > most && gone[*n].is_none() && may_go(*n) {
            gone[*n] = Some(Why::Namespace);
            *bytes = bytes.saturating_sub(results[*n].facts.bytes);
        }
    }

    if let Some(most) = cluster_max {
        let left = oldest_first.iter().filter(|n| gone[**n].is_none());
        let mut bytes = left.map(|n| results[*n].facts.bytes).fold(0, u64::saturating_add);
        for n in &oldest_first {
            if bytes > most && gone[*n].is_none() && !is_newest(*n) {
                gone[*n] = Some(Why::Cluster);
                bytes = bytes.saturating_sub(results[*n].facts.bytes);
            }
        }
    }
    oldest_first.into_iter().filter_map(|n| Some((n, gone[n]?))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use job_handler_shared::result::metadata::RETENTION;
    use job_handler_shared::result::metadata::RetentionFacts;
    use job_handler_shared::result::metadata::requesting_policy;
    use job_handler_shared::result::storage_kind::StorageKind;
    use std::collections::BTreeMap;
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

    /// The plainest way to say it: as long as some bound is broken, the oldest that may go because of it goes.
    fn oracle(all: &[StoredResult], bounds: &[Option<Bounds>], cluster: Option<u64>) -> Vec<String> {
        let mut left: Vec<usize> = (0..all.len()).collect();
        left.sort_by_key(|n| (all[*n].facts.created, all[*n].uid.clone()));
        let newest = |n: usize| {
            all[n].group.is_some()
                && !all.iter().any(|o| {
                    (&o.namespace, &o.group) == (&all[n].namespace, &all[n].group)
                        && (o.facts.created, &o.uid) > (all[n].facts.created, &all[n].uid)
                })
        };
        let free = |n: usize| !newest(n) && !all[n].pending && bounds[n].is_some();
        left.retain(|n| {
            let age = NOW - all[*n].facts.finished.as_second();
            !(free(*n) && age >= bounds[*n].unwrap().ttl_seconds as i64)
        });
        let drop_while = |left: &mut Vec<usize>, broken: &dyn Fn(&[usize], usize) -> bool| {
            while let Some(at) = left.iter().position(|n| broken(left, *n)) {
                left.remove(at);
            }
        };
        // The largest bound is that of all that were there when this rule's turn came.
        let then = left.clone();
        drop_while(&mut left, &|left, n| {
            let same =
                |o: &&usize| (&all[**o].namespace, &all[**o].group) == (&all[n].namespace, &all[n].group);
            let most = then.iter().filter(same).filter_map(|o| bounds[*o]).map(|b| b.max_per_group).max();
            free(n) && all[n].group.is_some() && left.iter().filter(same).count() > most.unwrap_or(0) as usize
        });
        let then = left.clone();
        drop_while(&mut left, &|left, n| {
            let same = |o: &&usize| all[**o].namespace == all[n].namespace;
            let most = then.iter().filter(same).filter_map(|o| bounds[*o]).map(|b| b.max_bytes).max();
            free(n) && left.iter().filter(same).map(|o| all[*o].facts.bytes).sum::<u64>() > most.unwrap_or(0)
        });
        drop_while(&mut left, &|left, n| {
            !newest(n)
                && cluster.is_some_and(|most| left.iter().map(|o| all[*o].facts.bytes).sum::<u64>() > most)
        });
        let mut gone: Vec<String> =
            (0..all.len()).filter(|n| !left.contains(n)).map(|n| all[n].uid.clone()).collect();
        gone.sort();
        gone
    }

    proptest! {
        #[test]
        fn equals_the_oracle(
            all in prop::collection::vec(
                ((0u8..2, prop::option::weighted(0.8, 0u8..2)), 990i64..1_000, 0u64..6, prop::bool::weighted(0.1),
                    prop::option::weighted(0.9, (0u64..12, 1u32..4, 0u64..20))),
                0..24),
            cluster in prop::option::of(0u64..40),
        ) {
            let bounds: Vec<Option<Bounds>> = all.iter().map(|(.., b)| {
                b.map(|(ttl_seconds, max_per_group, max_bytes)| Bounds { ttl_seconds, max_per_group, max_bytes })
            }).collect();
            let all: Vec<StoredResult> = all.iter().enumerate().map(|(n, ((ns, group), created, bytes, pending, _))| {
                stored(n, *ns, *group, *created, *bytes, *pending)
            }).collect();
            let of = |s: &StoredResult| bounds[s.uid.parse::<usize>().unwrap()];
            let now = Timestamp::from_second(NOW).unwrap();
            let mut gone: Vec<String> =
                plan(&all, of, cluster, now).iter().map(|(n, _)| all[*n].uid.clone()).collect();
            gone.sort();
            prop_assert_eq!(gone, oracle(&all, &bounds, cluster));
        }
    }

    #[test]
    fn each_bound_by_itself() {
        let wide = Bounds { ttl_seconds: 1_000, max_per_group: 10, max_bytes: 1_000 };
        let now = Timestamp::from_second(NOW).unwrap();
        let all: Vec<_> = (0..4).map(|n| stored(n, 0, Some(0), 990 + n as i64, 10, false)).collect();
        let gone = |bounds: Option<Bounds>, cluster| {
            let plan = plan(&all, |_| bounds, cluster, now);
            plan.into_iter().map(|(n, why)| (n, why.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(gone(Some(wide), None), []);
        assert_eq!(gone(Some(Bounds { ttl_seconds: 9, ..wide }), None), [(0, "age"), (1, "age")]);
        assert_eq!(gone(Some(Bounds { ttl_seconds: 0, ..wide }), None).len(), 3, "never the newest");
        assert_eq!(gone(Some(Bounds { max_per_group: 3, ..wide }), None), [(0, "number")]);
        assert_eq!(gone(Some(Bounds { max_bytes: 39, ..wide }), None), [(0, "namespace-budget")]);
        assert_eq!(gone(Some(Bounds { max_bytes: 0, ..wide }), None).len(), 3);
        assert_eq!(gone(None, Some(20)), [(0, "cluster-budget"), (1, "cluster-budget")]);
    }

    #[test]
    fn an_annotation_that_was_edited_bounds_nothing_but_by_the_cluster() {
        let place = || ("ci".to_owned(), "a-results".to_owned(), "u".to_owned());
        let annotations = BTreeMap::from([(RETENTION.to_owned(), "{".to_owned())]);
        let made = Timestamp::from_second(7).unwrap();
        let read =
            StoredResult::new(StorageKind::ConfigMap, place(), &BTreeMap::new(), &annotations, made, false);
        assert_eq!((read.facts.finished, read.facts.policies.len()), (made, 0));
        let facts = RetentionFacts {
            bytes: 9,
            policies: vec![requesting_policy("JobPolicy", "p")],
            ..RetentionFacts::default()
        };
        let text = serde_json::to_string(&facts).unwrap();
        let annotations = BTreeMap::from([(RETENTION.to_owned(), text)]);
        let read =
            StoredResult::new(StorageKind::ConfigMap, place(), &BTreeMap::new(), &annotations, made, false);
        assert_eq!(*read.facts, facts);
    }
}
