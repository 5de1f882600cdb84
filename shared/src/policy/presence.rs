//! What the Lease of a webhook replica says about the policies: which revisions it enforces, and which ones it cannot
//! enforce yet.
//!
//! All policies of the cluster share the Lease, and an object has at most 256 KiB of annotations
//! (`apimachinery/pkg/api/validation/objectmeta.go`, TotalAnnotationSizeLimitB). So a policy is named by the first
//! characters of its uid, and the policies that do not fit are left out: they are not Ready, and the others are.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::keys;

/// Characters of a uid that name a policy: 48 random bits.
const UID_LENGTH: usize = 13;
/// Maximum size of annotation [`keys::ENFORCES`] in bytes: about 9,800 policies.
const ENFORCES_MAX: usize = 192 << 10;
/// Maximum size of annotation [`keys::WITHHELD`] in bytes.
const WITHHELD_MAX: usize = 32 << 10;

/// The policies in a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    enforces: BTreeMap<String, i64>,
    withheld: BTreeMap<String, String>,
}

impl Presence {
    /// Reads the annotations of a Lease. A webhook of an older version writes whole uids.
    pub fn read(annotations: &BTreeMap<String, String>) -> Self {
        fn read<T: serde::de::DeserializeOwned>(text: Option<&String>) -> BTreeMap<String, T> {
            let by_uid: Option<BTreeMap<String, T>> = text.and_then(|text| serde_json::from_str(text).ok());
            by_uid.into_iter().flatten().map(|(uid, value)| (short(&uid).to_owned(), value)).collect()
        }
        Self {
            enforces: read(annotations.get(keys::ENFORCES)),
            withheld: read(annotations.get(keys::WITHHELD)),
        }
    }

    /// The generation of the policy that the replica enforces.
    pub fn enforces(&self, uid: &str) -> Option<i64> {
        self.enforces.get(short(uid)).copied()
    }

    /// Why the replica cannot enforce the policy's limits yet.
    pub fn withholds(&self, uid: &str) -> Option<&str> {
        self.withheld.get(short(uid)).map(String::as_str)
    }
}

/// The value of annotation [`keys::ENFORCES`]: uids and generations, the policies that matter most first.
pub fn render_enforced<'a>(policies: impl IntoIterator<Item = (&'a str, i64)>) -> String {
    render(policies, ENFORCES_MAX)
}

/// The value of annotation [`keys::WITHHELD`]: uids and reasons.
pub fn render_withheld<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    render(policies, WITHHELD_MAX)
}

/// A JSON object of at most `max` bytes.
fn render<'a, T: Into<Value>>(values: impl IntoIterator<Item = (&'a str, T)>, max: usize) -> String {
    let mut text = String::from("{");
    let (mut listed, mut left_out) = (0, 0);
    for (uid, value) in values {
        let comma = if listed == 0 { "" } else { "," };
        let (uid, value): (Value, Value) = (short(uid).into(), value.into());
        let field = format!("{comma}{uid}:{value}");
        if left_out == 0 && text.len() + field.len() < max {
            text.push_str(&field);
            listed += 1;
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        tracing::warn!(listed, left_out, "the Lease has no room for all policies");
    }
    text.push('}');
    text
}

fn short(uid: &str) -> &str {
    uid.get(..UID_LENGTH).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: usize) -> String {
        format!("{n:08x}-{:04x}-4000-8000-000000000000", n % 7)
    }

    fn annotations(enforces: &str, withheld: &str) -> BTreeMap<String, String> {
        [(keys::ENFORCES, enforces), (keys::WITHHELD, withheld)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn a_lease_is_read_as_it_was_written() {
        let (a, b) = (uid(1), uid(2));
        let enforces = render_enforced([(a.as_str(), 3)]);
        let withheld = render_withheld([(b.as_str(), "its \"ledger\" is missing")]);
        assert_eq!(enforces, r#"{"00000001-0001":3}"#);
        let read = Presence::read(&annotations(&enforces, &withheld));
        assert_eq!((read.enforces(&a), read.enforces(&b)), (Some(3), None));
        assert_eq!((read.withholds(&a), read.withholds(&b)), (None, Some("its \"ledger\" is missing")));
        let whole_uids = Presence::read(&annotations(&format!(r#"{{"{a}":3}}"#), "{}"));
        assert_eq!(whole_uids.enforces(&a), Some(3), "as an older version writes it");
        assert_eq!(Presence::read(&BTreeMap::new()), Presence::default());
    }

    /// The apiserver refuses a Lease with more than 256 KiB of annotations, and without its Lease a replica decides
    /// about no limit.
    #[test]
    fn any_number_of_policies_leaves_a_lease_that_can_be_written() {
        let uids: Vec<String> = (0..20_000).map(uid).collect();
        let enforces = render_enforced(uids.iter().map(|uid| (uid.as_str(), 12)));
        let why = "the JobLedger x is missing; Jobs that it granted may still be stored";
        let withheld = render_withheld(uids.iter().map(|uid| (uid.as_str(), why)));
        assert!(enforces.len() + withheld.len() < 250 << 10, "{} {}", enforces.len(), withheld.len());
        let read = Presence::read(&annotations(&enforces, &withheld));
        assert_eq!((read.enforces(&uids[7_000]), read.enforces(&uids[19_999])), (Some(12), None));
        assert_eq!((read.withholds(&uids[0]), read.withholds(&uids[19_999])), (Some(why), None));
    }
}
