//! One numeric field of a Job under a default and a maximum.

use std::fmt;

use crate::policy::{effective::Bound, reference::PolicyRef};

/// How an absent value is written.
pub const UNSET: &str = "unset";

/// What a field comes to, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What the author stated.
    pub stated: Option<i64>,
    /// What it comes to; none = nobody states one.
    pub value: Option<i64>,
    /// Why.
    pub why: Why,
}

/// Why a field has its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its author says so.
    Stated,
    /// A policy's default.
    Default(PolicyRef),
    /// A policy's maximum.
    Maximum(PolicyRef),
}

/// What an absent field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// More than any maximum: a Job without a deadline runs for ever.
    Unbounded,
    /// Nothing that a maximum is about: a Job without a TTL is deleted by nobody.
    Unconcerned,
}

/// Settles a field. Negative values are left to the apiserver's validation, which names them better than we could.
pub fn settle(stated: Option<i64>, bound: &Bound, absent: Absent) -> Settled {
    let (value, why) = match (stated, &bound.default, &bound.max) {
        (Some(value), _, Some(max)) if value > max.value => {
            (Some(max.value), Why::Maximum(max.policy.clone()))
        }
        (Some(value), ..) => (Some(value), Why::Stated),
        (None, Some(default), _) => (Some(default.value), Why::Default(default.policy.clone())),
        (None, None, Some(max)) if absent == Absent::Unbounded => {
            (Some(max.value), Why::Maximum(max.policy.clone()))
        }
        (None, None, _) => (None, Why::Stated),
    };
    Settled { stated, value, why }
}

impl Settled {
    /// Whether the author's word did not stand.
    pub fn changed(&self) -> bool {
        self.value != self.stated
    }

    /// What to tell an author who stated more than the maximum.
    pub fn warning(&self, field: &str) -> Option<String> {
        match (&self.why, self.stated, self.value) {
            (Why::Maximum(policy), Some(stated), Some(value)) => Some(format!(
                "job-handler: {field} {stated} is above the maximum {value} of {policy}; it is set to {value}"
            )),
            _ => None,
        }
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: Option<i64>| value.map_or_else(|| UNSET.to_owned(), |v| v.to_string());
        if self.changed() {
            write!(f, "{} -> ", text(self.stated))?;
        }
        write!(f, "{} (", text(self.value))?;
        match &self.why {
            Why::Stated => f.write_str("as stated)"),
            Why::Default(policy) => write!(f, "default of {policy})"),
            Why::Maximum(policy) => write!(f, "maximum of {policy})"),
        }
    }
}
