//! Applies a default and a maximum to a numeric field of a Job.

use std::fmt;

use crate::policy::{effective::CombinedRange, reference::PolicyRef};

/// Text for an absent value.
pub(crate) const UNSET: &str = "unset";

/// The value of a field after the policies were applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedValue {
    /// Value that the author stated.
    pub stated: Option<i64>,
    /// Resulting value; none = neither the author nor a policy states one.
    pub value: Option<i64>,
    /// Where the value comes from.
    pub source: ValueSource,
}

/// Where the value of a field comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// Stated by the author.
    Author,
    /// Default of a policy.
    Default(PolicyRef),
    /// Maximum of a policy.
    Maximum(PolicyRef),
}

/// What an absent field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentValue {
    /// More than any maximum: a Job without a deadline runs without end.
    Unlimited,
    /// Not subject to the maximum: nothing deletes a Job without a TTL.
    Exempt,
}

/// Applies default and maximum. Negative values pass: the apiserver rejects them with a better message.
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
    /// Whether the value differs from what the author stated.
    pub fn changed(&self) -> bool {
        self.value != self.stated
    }

    /// Warning for an author who stated more than the maximum.
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
