//! States that the kubelet writes of containers that it knows nothing about. Pure.
//!
//! Once a pod has ended, the kubelet writes of each container that is not known to have ended that it ended with code 137 and
//! reason `ContainerStatusUnknown` (`pkg/kubelet/status/status_manager.go`, `TerminatePod`): also of one that never started,
//! whose waiting reason tells why. It writes the same of the last run of a container that it does not find any more
//! (`pkg/kubelet/kubelet_pods.go`, `convertToAPIContainerStatuses`).

use job_handler_shared::result::pods::{PodFacts, StateFacts};

/// Whether nobody observed this state.
pub(crate) fn is_placeholder(state: &StateFacts) -> bool {
    state.phase == "terminated" && state.reason.as_deref() == Some("ContainerStatusUnknown")
}

/// Whether this state is of a run. A placeholder of a container that never started has no ID.
pub(crate) fn ran(state: &StateFacts) -> bool {
    match state.phase.as_str() {
        "running" => true,
        "terminated" => !is_placeholder(state) || !state.id.contains('#'),
        _ => false,
    }
}

/// Replaces placeholders by what was observed before.
pub(crate) fn keep_observed(now: &mut PodFacts, before: &PodFacts) {
    let observed = |state: &StateFacts| !is_placeholder(state) && state.phase != "unknown";
    for container in &mut now.containers {
        let Some(before) = before.containers.iter().find(|before| before.name == container.name) else {
            continue;
        };
        if is_placeholder(&container.state) && observed(&before.state) {
            container.state = before.state.clone();
        }
        // The run that the placeholder stands for was the current one, or is the last one for some time.
        if container.last_state.as_ref().is_some_and(is_placeholder) {
            let known = match &before.last_state {
                Some(last) if observed(last) && before.restart_count == container.restart_count => Some(last),
                _ => Some(&before.state).filter(|state| state.phase == "running"),
            };
            container.last_state =
                known.or(before.last_state.as_ref()).cloned().or(container.last_state.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::harvest::{job_pods::runs, pod_facts::tests::pod};

    fn main_of(state: serde_json::Value, last: serde_json::Value, id: &str) -> PodFacts {
        pod(
            json!({"phase": "Failed", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "containerID": id, "restartCount": 0, "state": state, "lastState": last}]}),
        )
    }

    fn unknown() -> serde_json::Value {
        json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": null, "finishedAt": null,
            "message": "The container could not be located when the pod was terminated"}})
    }

    #[test]
    fn a_placeholder_never_replaces_an_observation() {
        let ended =
            json!({"terminated": {"exitCode": 3, "reason": "Error", "containerID": "containerd://1"}});
        for observed in [
            json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}),
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
            ended.clone(),
        ] {
            let before = main_of(observed, json!({}), "containerd://1");
            let mut now = main_of(unknown(), json!({}), "containerd://1");
            keep_observed(&mut now, &before);
            assert_eq!(now.containers[2].state, before.containers[2].state);
        }
        // The other way round, and without an earlier observation.
        let mut now = main_of(ended, json!({}), "");
        keep_observed(&mut now, &main_of(unknown(), json!({}), ""));
        assert_eq!(now.containers[2].state.exit_code, Some(3));
        let mut now = main_of(unknown(), json!({}), "");
        keep_observed(&mut now, &pod(json!({"phase": "Pending"})));
        assert!(is_placeholder(&now.containers[2].state));
    }

    #[test]
    fn the_last_run_is_the_one_that_was_seen_running() {
        let before = main_of(json!({"running": {}}), json!({}), "containerd://1");
        let mut now = main_of(json!({"waiting": {"reason": "ContainerCreating"}}), unknown(), "");
        keep_observed(&mut now, &before);
        assert_eq!(runs(&now.containers[2]), [(true, "containerd://1".to_owned())]);
    }

    #[test]
    fn a_container_that_never_ran_has_no_log() {
        assert!(runs(&main_of(unknown(), json!({}), "").containers[2]).is_empty());
        let ran = main_of(unknown(), json!({}), "containerd://1");
        assert_eq!(runs(&ran.containers[2]), [(false, "containerd://1".to_owned())]);
    }
}
