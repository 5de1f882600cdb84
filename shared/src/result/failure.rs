//! The cause of a failure by level: Job, pod, container.

use serde::{Deserialize, Serialize};

/// A failure by level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// From the Job's condition.
    pub job: FailureLevel,
    /// From the most relevant pod, if its status gives a cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<FailureLevel>,
    /// From that pod's container that failed or never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<FailureLevel>,
}

/// The cause that one level gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureLevel {
    /// The cause.
    pub cause: Cause,
    /// Name of the pod or the container; empty for the Job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The reason in the status, such as `OOMKilled`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Exit code of a container that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal, if the container runtime reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// The cause of a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The deadline passed.
    Timeout,
    /// A container was killed for its memory use, by its reason: exit code 137 alone is not enough.
    Oom,
    /// A pod was evicted or lost with its node.
    Evicted,
    /// A pod was preempted by one with a higher priority.
    Preempted,
    /// No node could run the pod.
    Unschedulable,
    /// An image could not be pulled.
    Image,
    /// A container could not be created or started as specified.
    Config,
    /// Any other exit code or signal.
    #[default]
    Error,
}

impl Cause {
    /// The cause that a Job's condition gives by its reason.
    pub fn of_condition(reason: &str) -> Self {
        if reason == "DeadlineExceeded" { Self::Timeout } else { Self::Error }
    }

    /// The label value in metrics: one of the four that dashboards use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Oom => "oom",
            Self::Evicted | Self::Preempted => "evicted",
            Self::Unschedulable | Self::Image | Self::Config | Self::Error => "error",
        }
    }
}
