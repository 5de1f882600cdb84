//! The label keys that decide something about a Job. Of a Job's other labels, memory needs none.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{keys, policy::spec::PolicySpec};

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
        let mut keys = Self::default();
        for spec in policies {
            keys.0.extend(spec.job_selector.iter().flat_map(selector_keys).cloned());
            keys.0.extend(spec.group.iter().flat_map(|group| &group.label_keys).cloned());
            keys.0.extend(spec.stamp.iter().flat_map(|stamp| stamp.labels.keys()).cloned());
        }
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

fn selector_keys(selector: &LabelSelector) -> impl Iterator<Item = &String> {
    let labels = selector.match_labels.iter().flat_map(BTreeMap::keys);
    labels.chain(selector.match_expressions.iter().flatten().map(|expression| &expression.key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::policies::namespaced;

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
}
