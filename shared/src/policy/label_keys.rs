//! The label keys that decide something about a Job. Of a Job's other labels, memory needs none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{
    keys,
    policy::{parsed::Policy, spec::PolicySpec},
};

/// Read whatever policies say.
const ALWAYS: [&str; 3] = [keys::ENABLED, keys::GROUP, keys::KUEUE_QUEUE];

/// Label keys that selectors, groups and stamps of policies name, and those that the programs read themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelKeys(BTreeSet<String>);

impl Default for LabelKeys {
    fn default() -> Self {
        Self(ALWAYS.into_iter().map(str::to_owned).collect())
    }
}

impl LabelKeys {
    /// The keys that these policies name.
    pub fn of<'a>(policies: impl IntoIterator<Item = &'a PolicySpec>) -> Self {
        Self::default().with(policies)
    }

    /// These keys and those that the policies name.
    fn with<'a>(&self, policies: impl IntoIterator<Item = &'a PolicySpec>) -> Self {
        let mut keys = self.clone();
        keys.0.extend(policies.into_iter().flat_map(named_by).cloned());
        keys
    }

    /// Whether the key is one of them.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    /// Whether all keys of `other` are among these.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.is_subset(&self.0)
    }

    /// The keys that both have.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).cloned().collect())
    }
}

/// The label keys of each namespace: those that its own policies and those of the cluster name.
///
/// One set for all namespaces would let the policies of each tenant decide what is kept of the Jobs of all others: a further
/// key would make all of them incomplete, and memory would hold what one tenant names of every Job.
#[derive(Clone, Debug, Default)]
pub struct NamespaceLabelKeys {
    of_cluster: Arc<LabelKeys>,
    /// Of the namespaces that have policies.
    of_namespace: HashMap<String, Arc<LabelKeys>>,
}

impl NamespaceLabelKeys {
    /// The keys that these policies name.
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let (mut cluster, mut own): (Vec<_>, HashMap<_, Vec<_>>) = Default::default();
        for policy in policies {
            match policy.reference.namespace.as_deref() {
                Some(namespace) => own.entry(namespace).or_default().push(&policy.spec),
                None => cluster.push(&policy.spec),
            }
        }
        let of_cluster = LabelKeys::of(cluster);
        let own = own.into_iter();
        let of_namespace =
            own.map(|(name, specs)| (name.to_owned(), Arc::new(of_cluster.with(specs)))).collect();
        Self { of_cluster: Arc::new(of_cluster), of_namespace }
    }

    /// These keys, those of `before` where they are equal: each Job holds the ones by which it was trimmed, and while its
    /// namespace has the very same, nothing has to be compared.
    pub(super) fn sharing(mut self, before: &Self) -> Self {
        let share = |keys: &mut Arc<LabelKeys>, known: &Arc<LabelKeys>| {
            if *keys == *known {
                *keys = known.clone();
            }
        };
        share(&mut self.of_cluster, &before.of_cluster);
        self.of_namespace.iter_mut().for_each(|(namespace, keys)| share(keys, before.of(namespace)));
        self
    }

    /// The keys that decide about the Jobs of a namespace. Without a name, those of the cluster's policies.
    pub fn of(&self, namespace: &str) -> &Arc<LabelKeys> {
        self.of_namespace.get(namespace).unwrap_or(&self.of_cluster)
    }

    /// Whether these have all keys of `other` in each namespace.
    pub fn covers(&self, other: &Self) -> bool {
        let mut namespaces = other.of_namespace.iter();
        self.of_cluster.covers(&other.of_cluster)
            && namespaces.all(|(namespace, keys)| self.of(namespace).covers(keys))
    }
}

/// The label keys that a policy names; some of them twice.
pub(crate) fn named_by(policy: &PolicySpec) -> impl Iterator<Item = &String> {
    let selected = policy.job_selector.iter().flat_map(selector_keys);
    let grouped = policy.group.iter().flat_map(|group| &group.label_keys);
    selected.chain(grouped).chain(policy.stamp.iter().flat_map(|stamp| stamp.labels.keys()))
}

fn selector_keys(selector: &LabelSelector) -> impl Iterator<Item = &String> {
    let labels = selector.match_labels.iter().flat_map(BTreeMap::keys);
    labels.chain(selector.match_expressions.iter().flatten().map(|expression| &expression.key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::policies::{cluster, job_policy, namespaced};

    #[test]
    fn every_part_of_a_policy_that_reads_labels_names_its_keys() {
        let policy = namespaced(
            "p",
            json!({
                "jobSelector": {"matchLabels": {"app": "x"},
                    "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
                "group": {"type": "Labels", "labelKeys": ["repo"]},
                "stamp": {"labels": {"team": "build"}},
            }),
        );
        let keys = LabelKeys::of([&policy.spec]);
        for key in ["app", "tier", "repo", "team", keys::ENABLED, keys::GROUP, keys::KUEUE_QUEUE] {
            assert!(keys.contains(key), "{key}");
        }
        assert!(!keys.contains("x") && keys.covers(&LabelKeys::default()));
        assert!(!LabelKeys::default().covers(&keys));
        assert_eq!(LabelKeys::default().intersection(&keys), LabelKeys::default());
    }

    #[test]
    fn a_policy_names_keys_for_its_own_namespace_only() {
        let by = |key: &str| json!({"group": {"type": "Labels", "labelKeys": [key]}});
        let of_qa = |key| job_policy(json!({"name": "q", "namespace": "qa", "uid": "q"}), by(key));
        let (wide, own) = (cluster("wide", by("wide")), namespaced("own", by("own")));
        let keys = |of_qa: &Policy| NamespaceLabelKeys::new([&*wide, &*own, of_qa]);
        let before = keys(&of_qa("a"));
        let has = |namespace, key| before.of(namespace).contains(key);
        assert!(has("ci", "own") && has("ci", "wide") && !has("ci", "a"));
        assert!(has("qa", "a") && has("qa", "wide") && !has("qa", "own"));
        assert!(has("", "wide") && has("other", "wide") && !has("other", "own") && has("other", keys::GROUP));
        let after = keys(&of_qa("b"));
        assert!(before.covers(&before) && !before.covers(&after) && !after.covers(&before));
        assert!(before.of("ci").covers(after.of("ci")) && !before.of("qa").covers(after.of("qa")));
        let without = NamespaceLabelKeys::new([&*wide]);
        assert!(before.covers(&without) && !without.covers(&before));
        assert!(
            before.covers(&NamespaceLabelKeys::default()) && !NamespaceLabelKeys::default().covers(&without)
        );
    }
}
