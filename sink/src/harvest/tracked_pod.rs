//! The state of one tracked pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use job_handler_shared::result::pods::PodFacts;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{captured::CapturedLog, log_buffer::LogExcerpt, pod_facts},
    model::job_change::Uid,
    object_store::FullLog,
};

/// A pod of a Job whose result is not stored yet.
#[derive(Clone, Debug)]
pub(super) struct TrackedPod {
    pub(super) job: Uid,
    pub(super) namespace: String,
    pub(super) facts: PodFacts,
    pub(super) created: Option<jiff::Timestamp>,
    pub(super) deleting: bool,
    pub(super) since: Instant,
    pub(super) runs: BTreeMap<String, LogCapture>,
}

/// The log of one run of a container.
#[derive(Clone, Debug)]
pub(super) enum LogCapture {
    /// It is being read, with this many bytes reserved.
    Open(CancellationToken, usize),
    /// It has been read.
    Done(EarlyLog),
    /// It was dropped, for this reason; while the pod exists, it can be read again.
    Dropped(String),
}

/// A log that was captured before its Job finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EarlyLog {
    pub(crate) excerpt: LogExcerpt,
    /// Why it, or a part of it, is missing.
    pub(crate) lost: Option<String>,
    /// Memory was used up, so that less is kept than the policy allows: it is read again if that is possible.
    pub(crate) truncated: bool,
}

/// The last known state of a pod, with the logs that were captured of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CapturedPodState {
    pub(crate) facts: PodFacts,
    pub(crate) created: Option<jiff::Timestamp>,
    /// By run.
    pub(crate) logs: BTreeMap<String, EarlyLog>,
}

/// A snapshot of a tracked pod, to decide which logs to capture.
#[derive(Clone, Debug)]
pub(crate) struct TrackedPodView {
    pub(crate) job: Uid,
    pub(crate) namespace: String,
    pub(crate) facts: PodFacts,
    /// It has a deletion timestamp.
    pub(crate) deleting: bool,
    /// Runs whose capture has begun.
    pub(crate) runs: BTreeSet<String>,
}

impl From<&Pod> for CapturedPodState {
    fn from(pod: &Pod) -> Self {
        let created = pod.creation_timestamp().map(|t| t.0);
        Self { facts: pod_facts::of_pod(pod), created, logs: BTreeMap::new() }
    }
}

impl TrackedPod {
    /// Whether its logs can be read again later.
    pub(super) fn is_readable(&self) -> bool {
        !self.facts.gone && !self.deleting && self.facts.reason.is_none() && self.facts.disruption.is_none()
    }
}

impl LogCapture {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Open(_, taken) => *taken,
            Self::Done(content) => content.excerpt.bytes(),
            Self::Dropped(_) => 0,
        }
    }

    pub(super) fn content(&self) -> Option<EarlyLog> {
        match self {
            Self::Open(..) => None,
            Self::Done(content) => Some(content.clone()),
            Self::Dropped(why) => Some(EarlyLog { lost: Some(why.clone()), ..EarlyLog::default() }),
        }
    }
}

impl From<CapturedLog> for EarlyLog {
    fn from(mut log: CapturedLog) -> Self {
        // The spool is for logs that are uploaded soon: this one is read again.
        if matches!(log.excerpt.full, FullLog::Spooled(_)) {
            log.excerpt.full = FullLog::Absent;
        }
        // It may have been cut to what was left of the Job's budget.
        let truncated = log.excerpt.left_out() > 0;
        let lost = log.lost.filter(|lost| !lost.is_over_budget()).map(|lost| lost.to_string());
        Self { lost, truncated, excerpt: log.excerpt }
    }
}

impl EarlyLog {
    /// Whether nothing is missing except what exceeds the budget of one log.
    pub(crate) fn is_complete(&self) -> bool {
        self.lost.is_none() && !self.truncated && !matches!(self.excerpt.full, FullLog::Failed(_))
    }
}
