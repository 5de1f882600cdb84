//! One numeric field of a Job under a default and a maximum.

use std::fmt;

use crate::policy::{effective::CombinedRange, reference::PolicyRef};

/// How an absent value is written.
pub const UNSET: &str = "unset";

/// What a field comes to, and source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedValue {
    /// What the author stated.
    pub stated: Option<i64>,
    /// What it comes to; none = nobody states one.
    pub value: Option<i64>,
    /// ValueSource.
    pub source: ValueSource,
}

/// ValueSource a field has its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// Its author says so.
    Author,
    /// A policy's default.
    Default(PolicyRef),
    /// A policy's maximum.
    Maximum(PolicyRef),
}

/// What an absent field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentValue {
    /// More than any maximum: a Job without a deadline runs for ever.
    Unlimited,
    /// Nothing that a maximum is about: a Job without a TTL is deleted by nobody.
    Exempt,
}

/// Settles a field. Negative values are left to the apiserver's validation, which names them better than we could.
pub fn resolve(stated: Option<i64>, bound: &CombinedRange, absent: AbsentValue) -> ResolvedValue {
    let (value, source) = match (stated, &bound.default, &bound.max) {
        (Some(value), _, Some(max)) if value > max.value => {
            (Some(max.value), ValueSource::Maximum(max.policy.clone()))
        }
        (Some(value), ..) => (Some(value), ValueSource::Author),
        (None, Some(default), _) => (Some(default.value), ValueSource::Default(default.policy.clone())),
        (None, None, Some(max)) if absent == AbsentValue::Unlimited => {
            (Some(max.value), ValueSource::Maximum(max.policy.clone()))
        }
        (None, None, _) => (None, ValueSource::Author),
    };
    ResolvedValue { stated, value, source }
}

impl ResolvedValue {
    /// Whether the author's word did not stand.
    pub fn changed(&self) -> bool {
        self.value != self.stated
    }

    /// What to tell an author who stated more than the maximum.
    pub fn warning(&self, field: &str) -> Option<String> {
        match (&self.source, self.stated, self.value) {
            (ValueSource::Maximum(policy), Some(stated), Some(value)) => Some(format!(
                "job-handler: {field} {stated} is above the maximum {value} of {policy}; it is set to {value}"
            )),
            _ => None,
        }
    }
}

impl fmt::Display for ResolvedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: Option<i64>| value.map_or_else(|| UNSET.to_owned(), |v| v.to_string());
        if self.changed() {
            write!(f, "{} -> ", text(self.stated))?;
        }
        write!(f, "{} (", text(self.value))?;
        match &self.source {
            ValueSource::Author => f.write_str("as stated)"),
            ValueSource::Default(policy) => write!(f, "default of {policy})"),
            ValueSource::Maximum(policy) => write!(f, "maximum of {policy})"),
        }
    }
}
