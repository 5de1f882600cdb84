//! Undelivered CloudEvents of a result, as the manifest records them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::snapshot::Outcome;

/// What happened to a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobPhase {
    /// It started.
    Started,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// Its creation or its start was refused.
    Refused,
}

impl JobPhase {
    /// All phases.
    pub const ALL: [Self; 4] = [Self::Started, Self::Completed, Self::Failed, Self::Refused];

    /// The phase in IDs, manifests, metrics and the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl From<Outcome> for JobPhase {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// Undelivered CloudEvents of one Job: receiver -> phases, in order.
pub type PendingEvents = BTreeMap<String, Vec<JobPhase>>;
