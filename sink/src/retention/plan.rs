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
mod tests;
