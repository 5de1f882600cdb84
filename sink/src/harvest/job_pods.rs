//! The pods of one Job: those that exist, and those that were deleted before it finished.

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::{
        error::{ApiError, call},
        raw_reads::{self, ReadTarget},
    },
    result::pods::ContainerFacts,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};

use crate::harvest::{placeholder, pod_status::PodRelevance, tracked_pod::CapturedPodState};

/// Label that the Job controller puts on pods (`k8s.io/api/batch/v1`, `ControllerUidLabel`).
pub(crate) const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// A pod to collect.
pub(crate) enum JobPod {
    Existing(Box<CapturedPodState>),
    Deleted(Box<CapturedPodState>),
}

/// One run of one container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRun<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) container: &'a str,
    /// It is the run before the last restart.
    pub(crate) previous: bool,
    /// The container runtime's ID of the run.
    pub(crate) id: &'a str,
}

impl JobPod {
    fn state(&self) -> &CapturedPodState {
        let (Self::Existing(state) | Self::Deleted(state)) = self;
        state
    }

    pub(crate) fn uid(&self) -> &str {
        &self.state().facts.uid
    }

    /// The node to read its logs from.
    pub(crate) fn node(&self) -> Option<&str> {
        match self {
            Self::Existing(pod) => pod.facts.node.as_deref(),
            Self::Deleted(_) => None,
        }
    }

    pub(crate) fn relevance(&self) -> PodRelevance {
        let CapturedPodState { facts, created, .. } = self.state();
        let gone = matches!(self, Self::Deleted(_));
        PodRelevance {
            // One that is gone was deleted before it could succeed.
            failed: if gone { facts.phase != "Succeeded" } else { facts.phase == "Failed" },
            gone,
            created: *created,
            name: facts.name.clone(),
        }
    }

    pub(crate) fn log_count(&self) -> usize {
        self.state().facts.containers.iter().map(|container| runs(container).len()).sum()
    }
}

/// The runs of a container that have a log: whether it is the one before the last restart, and its ID.
pub(crate) fn runs(container: &ContainerFacts) -> Vec<(bool, String)> {
    let ran = placeholder::ran(&container.state);
    let before = container.last_state.as_ref().map(|state| (true, state.id.clone()));
    before.into_iter().chain(ran.then(|| (false, container.state.id.clone()))).collect()
}

/// Lists the pods of a Job and passes each on. One at a time is in memory: a Job can have a thousand pods, and its author can
/// write a megabyte into each.
pub(crate) async fn list(
    client: &Client,
    job: &JobSnapshot,
    mut on_pod: impl FnMut(&Pod),
) -> Result<(), ApiError> {
    let api = Api::<Pod>::namespaced(client.clone(), &job.namespace);
    let selector = job.pod_selector.clone().unwrap_or_else(|| format!("{CONTROLLER_UID}={}", job.uid));
    let target = ReadTarget::of(&api).select("labelSelector", Some(&selector));
    let listed = raw_reads::list(client, target, |json| {
        let pod: Pod = serde_json::from_slice(json)?;
        // Other pods can have the label, but not the owner reference.
        if pod.owner_references().iter().any(|owner| owner.uid == job.uid) {
            on_pod(&pod);
        }
        Ok(())
    });
    call("list pods", listed).await.map(drop)
}

#[cfg(test)]
mod tests {
    use job_handler_shared::result::pods::StateFacts;

    use super::*;

    #[test]
    fn a_container_has_one_log_per_run_that_has_started() {
        let state = |phase: &str, id: &str| StateFacts {
            phase: phase.into(),
            id: id.into(),
            ..StateFacts::default()
        };
        let (first, second) = ((true, "1".to_owned()), (false, "2".to_owned()));
        for (now, before, expected) in [
            (state("waiting", ""), None, vec![]),
            (state("running", "2"), None, vec![second.clone()]),
            (state("terminated", "2"), Some(state("terminated", "1")), vec![first.clone(), second]),
            (state("waiting", ""), Some(state("terminated", "1")), vec![first]),
        ] {
            let container = ContainerFacts { state: now, last_state: before, ..ContainerFacts::default() };
            assert_eq!(runs(&container), expected, "{container:?}");
        }
    }
}
