//! Which Jobs are runs of the same thing, and in which order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    job::snapshot::{JobSnapshot, Owner},
    names,
    policy::spec::{GroupBy, GroupSpec},
};

/// A group's identity within its namespace. Always derived from the raw Job and the policies, never from the
/// stamped label: two policies that group by different keys may stamp the same value and still mean
/// different groups, and a forged label joins none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct GroupId {
    /// What it is grouped by: `labels:<key>,<key>` or `owner:<kind>`.
    pub by: String,
    /// The value of label [`crate::keys::GROUP`].
    pub value: String,
}

/// Why a Job has no group although a policy asks for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGroup {
    /// A label key is missing on the Job.
    #[error("no group: the Job has no label {0}")]
    MissingLabel(String),
    /// A label that makes groups is empty. Charts and CI write such labels where they have no value to set: Jobs that
    /// share nothing else are no runs of the same thing.
    #[error("no group: the Job's label {0} is empty")]
    EmptyLabel(String),
    /// It has no controlling owner.
    #[error("no group: the Job has no controlling owner")]
    NoOwner,
}

/// The group of a Job with these labels and this owner.
///
/// # Errors
/// Where a label is missing or empty, or there is no owner.
pub fn group_of(
    spec: &GroupSpec,
    labels: &BTreeMap<String, String>,
    owner: Option<&Owner>,
) -> Result<GroupId, NoGroup> {
    match spec.by {
        GroupBy::Labels => {
            let values = spec
                .label_keys
                .iter()
                .map(|key| group_label_value(labels, key))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(GroupId { by: format!("labels:{}", spec.label_keys.join(",")), value: join(&values) })
        }
        GroupBy::Owner => {
            let owner = owner.ok_or(NoGroup::NoOwner)?;
            Ok(GroupId { by: format!("owner:{}", owner.kind), value: names::label_value(&owner.name) })
        }
    }
}

/// The value of a label that makes groups.
///
/// # Errors
/// Where it is missing or empty.
pub fn group_label_value<'a>(labels: &'a BTreeMap<String, String>, key: &str) -> Result<&'a str, NoGroup> {
    match labels.get(key).map(String::as_str) {
        None => Err(NoGroup::MissingLabel(key.to_owned())),
        Some("") => Err(NoGroup::EmptyLabel(key.to_owned())),
        Some(value) => Ok(value),
    }
}

/// One value stands as it is; several are joined by dots. Where that would be ambiguous, or no label value, a
/// hash over the parts keeps groups apart.
fn join(values: &[&str]) -> String {
    if let [value] = values {
        return names::label_value(value);
    }
    let joined = values.join(".");
    let plain = values.iter().all(|v| !v.is_empty() && !v.contains('.')) && names::is_label_value(&joined);
    if plain { joined } else { names::hashed_label_value(&joined, values.iter().copied()) }
}

/// The key that orders Jobs of a group from oldest to newest. Timestamps have a resolution of one second, so the uid
/// decides between Jobs of the same second: arbitrary, but the same for everyone.
pub fn age_order(job: &JobSnapshot) -> (jiff::Timestamp, &str) {
    (job.created, &job.uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn by(keys: &[&str]) -> GroupSpec {
        GroupSpec { by: GroupBy::Labels, label_keys: keys.iter().map(|k| (*k).to_owned()).collect() }
    }

    #[test]
    fn one_label_is_the_value_itself() {
        let group = group_of(&by(&["app"]), &labels(&[("app", "shop.v1")]), None).unwrap();
        assert_eq!(group.value, "shop.v1");
    }

    #[test]
    fn several_labels_are_joined() {
        let group = group_of(&by(&["a", "b"]), &labels(&[("a", "7"), ("b", "12")]), None).unwrap();
        assert_eq!(group.value, "7.12");
    }

    #[test]
    fn a_missing_label_is_no_group_and_says_so() {
        let error = group_of(&by(&["a", "b"]), &labels(&[("a", "7")]), None).unwrap_err();
        assert_eq!(error.to_string(), "no group: the Job has no label b");
    }

    #[test]
    fn an_empty_label_is_no_group_and_says_so() {
        for pairs in [[("a", ""), ("b", "12")], [("a", "7"), ("b", "")]] {
            let error = group_of(&by(&["a", "b"]), &labels(&pairs), None).unwrap_err();
            assert!(matches!(&error, NoGroup::EmptyLabel(key) if pairs.contains(&(key, ""))), "{error}");
        }
        let error = group_of(&by(&["a"]), &labels(&[("a", "")]), None).unwrap_err();
        assert_eq!(error.to_string(), "no group: the Job's label a is empty");
    }

    #[test]
    fn long_values_get_a_hash() {
        let (x, y) = ("x".repeat(300), format!("{}y", "x".repeat(299)));
        let value = |v: &str| group_of(&by(&["a"]), &labels(&[("a", v)]), None).unwrap().value;
        assert!(value(&x).len() <= 63);
        assert_ne!(value(&x), value(&y));
    }

    #[test]
    fn owner_groups_by_name() {
        let owner = Owner { kind: "CronJob".into(), name: "nightly".into(), ..Owner::default() };
        let spec = GroupSpec { by: GroupBy::Owner, label_keys: vec![] };
        assert_eq!(group_of(&spec, &BTreeMap::new(), Some(&owner)).unwrap().value, "nightly");
        assert_eq!(group_of(&spec, &BTreeMap::new(), None).unwrap_err(), NoGroup::NoOwner);
    }

    proptest! {
        /// Different values never share a group.
        #[test]
        fn joined_values_stay_apart(
            a in "[a-zA-Z0-9._-]{0,20}", b in "[a-zA-Z0-9._-]{0,20}",
            c in "[a-zA-Z0-9._-]{0,20}", d in "[a-zA-Z0-9._-]{0,20}",
        ) {
            prop_assume!((&a, &b) != (&c, &d));
            prop_assert_ne!(join(&[&a, &b]), join(&[&c, &d]));
        }
    }
}
