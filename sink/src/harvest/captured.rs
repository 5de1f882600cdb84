//! What was collected of a Job's pods.

use std::collections::BTreeSet;

use job_handler_shared::result::{
    manifest::ObjectsFacts,
    pods::{FullLogObject, LogFacts, PodFacts},
};

use crate::{
    harvest::{job_pods::LogRun, log_buffer::LogExcerpt},
    object_store::FullLog,
};

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
    pub lost: Option<String>,
    /// It is to be read in the slow lane.
    pub deferred: bool,
}

impl CapturedPods {
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

    pub(crate) fn facts(&self) -> LogFacts {
        LogFacts {
            previous: self.previous,
            length: self.excerpt.length,
            left_out: self.excerpt.left_out(),
            sha256: self.excerpt.sha256.clone(),
            lost: self.lost.clone(),
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
