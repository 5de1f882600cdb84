//! What was collected of a Job's pods.

use std::{collections::BTreeSet, fmt};

use job_handler_shared::result::{
    manifest::ObjectsFacts,
    pods::{FullLogObject, LogFacts, PodFacts},
};

use crate::{
    harvest::{job_pods::LogRun, log_buffer::LogExcerpt},
    object_store::FullLog,
};

/// Why a log is left out.
const BUDGET_USED_UP: &str = "the policies' log budget for one Job was used up by other logs";
/// Why the middle of a log is left out.
const OVER_BUDGET: &str = "the policies' log budget keeps its beginning and end";

/// A pod and its logs.
#[derive(Clone, Debug, Default)]
pub struct CapturedPod {
    /// Its states, which include the facts about its logs.
    pub facts: PodFacts,
    /// Creation, for the order of sections.
    pub created: Option<jiff::Timestamp>,
    /// Its logs, in the order of the containers' facts.
    pub logs: Vec<CapturedLog>,
}

/// All pods of a Job.
#[derive(Clone, Debug, Default)]
pub struct CapturedPods {
    /// The most relevant ones first.
    pub pods: Vec<CapturedPod>,
    /// Deleted pods that were dropped because there were too many.
    pub dropped_pods: usize,
    /// What the object store has of their logs.
    pub objects: Option<ObjectsFacts>,
}

/// One log.
#[derive(Clone, Debug, Default)]
pub struct CapturedLog {
    /// The name of the container that wrote it.
    pub container: String,
    /// It is the run before the last restart.
    pub previous: bool,
    /// The container runtime's ID of the run.
    pub run_id: String,
    /// Its beginning and end.
    pub excerpt: LogExcerpt,
    /// Why it, or a part of it, is missing.
    pub lost: Option<LogLoss>,
    /// It is to be read in the slow lane.
    pub deferred: bool,
}

/// Why a log, or a part of it, is missing; the text is for readers of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogLoss {
    /// It cannot be read now, but it may still exist: the node or the apiserver is silent, fails, or is overloaded. The Job
    /// is kept, and the log is read again later.
    Passing(String),
    /// The kubelet says that the container was removed. It says the same while its container runtime restarts
    /// (`pkg/kubelet/kuberuntime/kuberuntime_container.go`, `GetContainerLogs`), so that it has to say so repeatedly. Or the log
    /// took too long to read, as it does on a slow node.
    Unconfirmed(String),
    /// Another attempt cannot do better: its pod or node was deleted, or the policies do not ask for it.
    Final(String),
    /// The policies' log budget was used up by other logs: it is left out on purpose.
    OverBudget,
}

/// Logs that may be read in a later harvest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingLogs {
    /// Which log, why, and the number of further ones.
    pub reason: String,
    /// At least one may still exist; else the kubelet says of all that they were removed, or they took too long.
    pub may_exist: bool,
}

impl LogLoss {
    /// The reason, for readers of the result.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Passing(reason) | Self::Unconfirmed(reason) | Self::Final(reason) => reason,
            Self::OverBudget => BUDGET_USED_UP,
        }
    }

    pub(crate) fn is_over_budget(&self) -> bool {
        matches!(self, Self::OverBudget)
    }

    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Passing(_))
    }
}

impl fmt::Display for LogLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl CapturedPods {
    /// The logs that may be read in a later harvest; none if there is no such log.
    pub(crate) fn pending_logs(&self) -> Option<PendingLogs> {
        let mut pending = Vec::new();
        for pod in &self.pods {
            for log in &pod.logs {
                if let Some(lost @ (LogLoss::Passing(_) | LogLoss::Unconfirmed(_))) = &log.lost {
                    pending.push((&pod.facts.name, &log.container, lost));
                }
            }
        }
        let may_exist = pending.iter().any(|(_, _, lost)| lost.is_passing());
        let (pod, container, lost) = pending.iter().find(|(_, _, lost)| lost.is_passing() == may_exist)?;
        let further = match pending.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        Some(PendingLogs { reason: format!("log of {pod}/{container}{further}: {lost}"), may_exist })
    }

    pub(crate) fn full_logs(&self) -> impl Iterator<Item = &FullLogObject> {
        self.pods.iter().flat_map(|pod| &pod.logs).filter_map(|log| match &log.excerpt.full {
            FullLog::Stored(object) => Some(object),
            _ => None,
        })
    }

    /// Updates the facts about logs from the logs, which are in the same order.
    pub(crate) fn update_facts(&mut self) {
        for pod in &mut self.pods {
            let facts = pod.facts.containers.iter_mut().flat_map(|container| &mut container.logs);
            facts.zip(&pod.logs).for_each(|(facts, log)| *facts = log.facts());
        }
    }

    /// URLs of their objects.
    pub(crate) fn object_urls(&self) -> BTreeSet<String> {
        self.full_logs().map(|object| object.url.clone()).collect()
    }
}

impl CapturedLog {
    pub(crate) fn new(run: LogRun<'_>) -> Self {
        Self {
            container: run.container.to_owned(),
            previous: run.previous,
            run_id: run.id.to_owned(),
            ..Self::default()
        }
    }

    /// Why a part of it is left out on purpose; none if it is not, or if it is lost.
    pub(crate) fn truncation(&self) -> Option<&'static str> {
        match (&self.lost, &self.excerpt.full) {
            (Some(LogLoss::OverBudget), _) => Some(BUDGET_USED_UP),
            (Some(_), _) | (None, FullLog::Stored(_)) => None,
            (None, _) => (self.excerpt.left_out() > 0).then_some(OVER_BUDGET),
        }
    }

    pub(crate) fn facts(&self) -> LogFacts {
        LogFacts {
            previous: self.previous,
            length: self.excerpt.length,
            left_out: self.excerpt.left_out(),
            sha256: self.excerpt.sha256.clone(),
            lost: self
                .lost
                .as_ref()
                .filter(|lost| !lost.is_over_budget())
                .map(|lost| lost.reason().to_owned()),
            truncated: self.truncation().is_some(),
            full: match &self.excerpt.full {
                FullLog::Stored(object) => Some(object.clone()),
                _ => None,
            },
            section: None,
        }
    }
}

/// Bytes that these logs use in memory.
pub(crate) fn bytes_of(pods: &[CapturedPod]) -> usize {
    pods.iter().flat_map(|pod| &pod.logs).map(|log| log.excerpt.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(container: &str, lost: Option<LogLoss>) -> CapturedLog {
        CapturedLog { container: container.into(), lost, ..CapturedLog::default() }
    }

    #[test]
    fn final_losses_are_not_worth_another_attempt() {
        let facts = PodFacts { name: "build-x".into(), ..PodFacts::default() };
        let pending = |logs| {
            let pod = CapturedPod { facts: facts.clone(), logs, ..CapturedPod::default() };
            CapturedPods { pods: vec![pod], ..CapturedPods::default() }.pending_logs()
        };
        let expected = |reason: &str, may_exist| Some(PendingLogs { reason: reason.into(), may_exist });
        let gone = log("old", Some(LogLoss::Final("the pod was deleted".into())));
        let silent = |name| log(name, Some(LogLoss::Passing("no answer".into())));
        let removed = log("side", Some(LogLoss::Unconfirmed("removed".into())));
        assert_eq!(pending(vec![]), None);
        assert_eq!(pending(vec![log("main", None), gone.clone()]), None);
        assert_eq!(pending(vec![gone, silent("main")]), expected("log of build-x/main: no answer", true));
        assert_eq!(pending(vec![removed.clone()]), expected("log of build-x/side: removed", false));
        let both = pending(vec![removed, silent("main")]);
        assert_eq!(both, expected("log of build-x/main (and 1 more): no answer", true));
    }
}
