//! Labels of the metrics, and the types behind their values.

use prometheus_client::encoding::EncodeLabelSet;

/// The endpoint that received a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/mutate`.
    Mutate,
    /// `/validate`.
    Validate,
    /// `/warn`.
    Warn,
}

/// The result of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReviewVerdict {
    /// Allowed without changes.
    Allowed,
    /// Allowed with changes.
    Patched,
    /// A limit is full, or the group is in failure backoff.
    Refused,
    /// Not decided: a dependency is unavailable.
    Unavailable,
    /// Not a review of a Job.
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReviewLabels {
    pub(super) endpoint: &'static str,
    pub(super) verdict: &'static str,
}

/// A limit and its ledger: a namespace, or the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WebhookLimitLabels {
    pub(super) policy: String,
    pub(super) limit: String,
    pub(super) ledger: String,
}

/// The slots of a limit that are held by one kind of holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HeldSlotLabels {
    pub(super) policy: String,
    pub(super) limit: String,
    pub(super) ledger: String,
    pub(super) held_by: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusalLabels {
    pub(super) policy: String,
    pub(super) limit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DecisionLabels {
    pub(super) verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndpointLabels {
    pub(super) endpoint: &'static str,
}

impl Endpoint {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
            Self::Warn => "warn",
        }
    }
}

impl ReviewVerdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Patched => "patched",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Bad => "bad",
        }
    }
}
