//! What a failure was, by level: Job, pod, container.

use serde::{Deserialize, Serialize};

/// A failure, level by level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// By the Job's condition.
    pub job: FailureLevel,
    /// By the pod that explains most, where it says anything of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<FailureLevel>,
    /// By that pod's container which failed, or never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<FailureLevel>,
}

/// What one level says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureLevel {
    /// What it was.
    pub cause: Cause,
    /// Who says so: the name of the pod or the container; the Job is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// In Kubernetes' word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Exit code, of a container that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal, where the runtime tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// What a failure was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The deadline passed.
    Timeout,
    /// A container was killed for its memory, and said so: exit code 137 alone is not that.
    Oom,
    /// A pod was evicted, or lost with its node.
    Evicted,
    /// A pod had to make room for a more important one.
    Preempted,
    /// No node would take the pod.
    Unschedulable,
    /// An image could not be had.
    Image,
    /// A container could not be made, or started, as it was asked for.
    Config,
    /// Everything else: an exit code, or a signal.
    #[default]
    Error,
}

impl Cause {
    /// The cause that a Job's condition gives by its reason.
    pub fn of_condition(reason: &str) -> Self {
        if reason == "DeadlineExceeded" { Self::Timeout } else { Self::Error }
    }

    /// The word in metrics: of the four that dashboards know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Oom => "oom",
            Self::Evicted | Self::Preempted => "evicted",
            Self::Unschedulable | Self::Image | Self::Config | Self::Error => "error",
        }
    }
}
