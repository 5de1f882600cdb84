//! The group of a Job.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    job::snapshot::Owner,
    names,
    policy::spec::{GroupBy, GroupSpec},
};

/// Identity of a group within its namespace. Derived from the raw Job and the policies, never from the stamped label: two
/// policies that group by different keys may stamp equal values, and a forged label must not join a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct GroupId {
    /// What Jobs are grouped by: `labels:<key>,<key>` or `owner:<kind>.<API group>/<uid>`.
    pub by: String,
    /// Value of label [`crate::keys::GROUP`].
    pub value: String,
}

/// Why a Job has no group although a policy asks for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoGroup {
    /// A label key is missing on the Job.
    #[error("no group: the Job has no label {0}")]
    MissingLabel(String),
    /// A label key is empty on the Job. Charts and CI write empty labels where they have no value, so that Jobs with an
    /// empty label are not related.
    #[error("no group: the Job's label {0} is empty")]
    EmptyLabel(String),
    /// The Job has no controlling owner.
    #[error("no group: the Job has no controlling owner")]
    NoOwner,
}

/// Returns the group of a Job with these labels and this owner.
///
/// # Errors
/// Fails if a label is missing or empty, or the owner is missing.
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
            // Who writes a Job writes its ownerReferences. Only one with the uid of the owner joins its group: that is as good
            // as a run of it (`kubectl create job --from`). The apiserver does not check that the owner exists; a reference to
            // nothing makes a group of its own.
            let api_group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
            let by = format!("owner:{}.{api_group}/{}", owner.kind, owner.uid);
            Ok(GroupId { by, value: names::label_value(&owner.name) })
        }
    }
}

/// Returns the value of a label of the group.
///
/// # Errors
/// Fails if the label is missing or empty.
pub fn group_label_value<'a>(labels: &'a BTreeMap<String, String>, key: &str) -> Result<&'a str, NoGroup> {
    match labels.get(key).map(String::as_str) {
        None => Err(NoGroup::MissingLabel(key.to_owned())),
        Some("") => Err(NoGroup::EmptyLabel(key.to_owned())),
        Some(value) => Ok(value),
    }
}

/// Joins values by dots. Adds a hash if the result would be ambiguous or not a valid label value.
fn join(values: &[&str]) -> String {
    if let [value] = values {
        return names::label_value(value);
    }
    let joined = values.join(".");
    let plain = values.iter().all(|v| !v.is_empty() && !v.contains('.')) && names::is_label_value(&joined);
    if plain { joined } else { names::hashed_label_value(&joined, values.iter().copied()) }
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
    fn one_label_gives_its_value() {
        let group = group_of(&by(&["app"]), &labels(&[("app", "shop.v1")]), None).unwrap();
        assert_eq!(group.value, "shop.v1");
    }

    #[test]
    fn several_labels_are_joined() {
        let group = group_of(&by(&["a", "b"]), &labels(&[("a", "7"), ("b", "12")]), None).unwrap();
        assert_eq!(group.value, "7.12");
    }

    #[test]
    fn a_missing_label_means_no_group() {
        let error = group_of(&by(&["a", "b"]), &labels(&[("a", "7")]), None).unwrap_err();
        assert_eq!(error.to_string(), "no group: the Job has no label b");
    }

    #[test]
    fn an_empty_label_means_no_group() {
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
    fn an_owner_is_kind_api_group_name_and_uid() {
        let owner = |api_version: &str, kind: &str, name: &str, uid: &str| Owner {
            api_version: api_version.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
        };
        let spec = GroupSpec { by: GroupBy::Owner, label_keys: vec![] };
        let group = |owner: &Owner| group_of(&spec, &BTreeMap::new(), Some(owner)).unwrap();
        let nightly = group(&owner("batch/v1", "CronJob", "nightly", "u-1"));
        assert_eq!((nightly.by.as_str(), nightly.value.as_str()), ("owner:CronJob.batch/u-1", "nightly"));
        assert_eq!(group(&owner("batch/v2", "CronJob", "nightly", "u-1")), nightly, "another version of it");
        for other in [
            owner("fake.io/v1", "CronJob", "nightly", "u-1"),
            owner("batch/v1", "CronJob", "nightly", "u-2"),
            owner("batch/v1", "CronJob", "other", "u-1"),
            owner("batch/v1", "Workflow", "nightly", "u-1"),
        ] {
            assert_ne!(group(&other), nightly, "{other:?}");
        }
        assert_eq!(group_of(&spec, &BTreeMap::new(), None).unwrap_err(), NoGroup::NoOwner);
    }

    proptest! {
        /// Different values never give the same group.
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
