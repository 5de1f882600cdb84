//! The pods of one Job: those that exist, and those that were deleted before it finished.

use job_handler_shared::{
    kube::{
        error::{ApiError, call},
        raw_reads::{self, ReadTarget},
    },
    result::pods::{ContainerFacts, PodFacts},
};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};
use kube::{Api, Client, ResourceExt};

use crate::{
    harvest::{pod_status, tracked_pod::CapturedPodState},
    model::job_change::Uid,
};

/// Label that the Job controller puts on pods (`k8s.io/api/batch/v1`, `ControllerUidLabel`).
pub(crate) const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";

/// Labels of pods that are read.
const READ_LABELS: [&str; 2] = [CONTROLLER_UID, pod_status::COMPLETION_INDEX];

/// A pod to collect.
pub(crate) enum JobPod {
    Existing(Box<Pod>),
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
    pub(crate) fn uid(&self) -> Option<Uid> {
        match self {
            Self::Existing(pod) => pod.uid(),
            Self::Deleted(pod) => Some(pod.facts.uid.clone()),
        }
    }

    /// The node to read its logs from.
    pub(crate) fn node(&self) -> Option<&str> {
        match self {
            Self::Existing(pod) => pod.spec.as_ref()?.node_name.as_deref(),
            Self::Deleted(_) => None,
        }
    }

    pub(crate) fn relevance(&self) -> pod_status::PodRelevance {
        match self {
            Self::Existing(pod) => pod_status::relevance(pod),
            Self::Deleted(pod) => pod_status::PodRelevance {
                // It was deleted before it could succeed.
                failed: pod.facts.phase != "Succeeded",
                gone: true,
                created: pod.created,
                name: pod.facts.name.clone(),
            },
        }
    }

    pub(crate) fn log_count(&self) -> usize {
        let count = |facts: &PodFacts| facts.containers.iter().map(|container| runs(container).len()).sum();
        match self {
            Self::Existing(pod) => count(&pod_status::of_pod(pod)),
            Self::Deleted(pod) => count(&pod.facts),
        }
    }
}

/// The runs of a container that have a log: whether it is the one before the last restart, and its ID.
pub(crate) fn runs(container: &ContainerFacts) -> Vec<(bool, String)> {
    let ran = matches!(container.state.phase.as_str(), "terminated" | "running");
    let before = container.last_state.as_ref().map(|state| (true, state.id.clone()));
    before.into_iter().chain(ran.then(|| (false, container.state.id.clone()))).collect()
}

/// Lists the pods of a Job. One at a time is read whole.
pub(crate) async fn list(client: &Client, namespace: &str, job_uid: &str) -> Result<Vec<Pod>, ApiError> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let selector = format!("{CONTROLLER_UID}={job_uid}");
    let target = ReadTarget::of(&api).select("labelSelector", Some(&selector));
    let mut pods = Vec::new();
    let listed = raw_reads::list(client, target, |json| {
        let pod: Pod = serde_json::from_slice(json)?;
        // Other pods can have the label, but not the owner reference.
        if pod.owner_references().iter().any(|owner| owner.uid == job_uid) {
            pods.push(trim(pod));
        }
        Ok(())
    });
    call("list pods", listed).await?;
    Ok(pods)
}

/// Keeps the fields that are read here: a Job can have a thousand pods, and its author can write a megabyte into each.
pub(crate) fn trim(mut pod: Pod) -> Pod {
    let metadata = &mut pod.metadata;
    (metadata.managed_fields, metadata.annotations, metadata.finalizers) = (None, None, None);
    metadata.labels.iter_mut().for_each(|labels| labels.retain(|key, _| READ_LABELS.contains(&key.as_str())));
    metadata.owner_references.iter_mut().for_each(|owners| owners.retain(|owner| owner.kind == "Job"));
    pod.spec = pod.spec.map(|spec| PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(trim_container).collect(),
        init_containers: spec.init_containers.map(|all| all.into_iter().map(trim_container).collect()),
        ephemeral_containers: spec
            .ephemeral_containers
            .map(|all| all.into_iter().map(trim_ephemeral_container).collect()),
        ..PodSpec::default()
    });
    pod
}

fn trim_container(container: Container) -> Container {
    let Container { name, image, restart_policy, .. } = container;
    Container { name, image, restart_policy, ..Container::default() }
}

fn trim_ephemeral_container(container: EphemeralContainer) -> EphemeralContainer {
    let EphemeralContainer { name, image, .. } = container;
    EphemeralContainer { name, image, ..EphemeralContainer::default() }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::result::pods::StateFacts;
    use serde_json::json;

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

    #[test]
    fn a_trimmed_pod_has_the_same_facts_and_nothing_that_its_author_may_fill() {
        let filler = "x".repeat(10_000);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "ci", "uid": "p",
                "labels": {(CONTROLLER_UID): "j", (pod_status::COMPLETION_INDEX): "3", "l": filler},
                "annotations": {"a": filler}, "finalizers": [filler],
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j"},
                    {"apiVersion": "v1", "kind": "Other", "name": filler, "uid": "o"}]},
            "spec": {"nodeName": "n", "nodeSelector": {"a": filler}, "hostAliases": [{"ip": filler}],
                "containers": [{"name": "main", "image": "i", "args": [filler], "workingDir": filler}],
                "initContainers": [{"name": "side", "restartPolicy": "Always", "command": [filler]}],
                "ephemeralContainers": [{"name": "debug", "image": "d", "env": [{"name": filler}]}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let trimmed = trim(pod.clone());
        assert_eq!(pod_status::of_pod(&trimmed), pod_status::of_pod(&pod));
        let text = serde_json::to_string(&trimmed).unwrap();
        assert!(text.len() < 1_000, "{text}");
    }
}
