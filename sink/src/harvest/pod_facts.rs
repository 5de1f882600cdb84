//! The facts about a pod: of what its author and the kubelet wrote, a bounded part. Pure.

use job_handler_shared::{
    names::OBJECT_NAME_MAX,
    result::pods::{ContainerFacts, ContainerKind, PodFacts, StateFacts},
    text::truncate,
};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;

/// The kubelet's limit for termination messages; other messages, and other writers of the status, may exceed it.
const MESSAGE_MAX: usize = 4096;
/// The kubelet's limit for the termination messages of all containers of a pod; each gets the same part of it
/// (`pkg/kubelet/status/status_manager.go`, `normalizeStatus`). Here, other messages have the same limit: they repeat names
/// of images.
const POD_MESSAGES_MAX: usize = 12 << 10;
/// Longest name or ID of an image. Kubernetes takes any; registries take 255 bytes with a tag of 128 or a digest.
const IMAGE_MAX: usize = 512;
/// Most containers of a list of a pod. Kubernetes bounds only the size of the pod, which has room for thousands.
const CONTAINERS_MAX: usize = 64;

/// Label with a pod's completion index (`k8s.io/api/batch/v1`, `JobCompletionIndexAnnotation`; a label since 1.28).
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What is read of a container's specification.
struct SpecOfContainer<'a> {
    name: &'a str,
    image: Option<&'a str>,
    kind: ContainerKind,
    /// `terminationMessagePolicy`.
    message_policy: Option<&'a str>,
}

/// The states of a pod. Its author can fill it up to a megabyte, and a Job can have a thousand pods: what is kept of one is
/// bounded.
pub(crate) fn of_pod(pod: &Pod) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let condition = |kind: &str, is: &str| {
        let all = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        all.iter().find(|c| c.type_ == kind && c.status == is)
    };
    let inits = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let mains = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let debuggers = spec.and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    let share = POD_MESSAGES_MAX / (inits.len() + mains.len() + debuggers.len()).max(1);
    let message_max = share.min(MESSAGE_MAX);
    let inits = inits.iter().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
        SpecOfContainer {
            name: &container.name,
            image: container.image.as_deref(),
            kind,
            message_policy: container.termination_message_policy.as_deref(),
        }
    });
    let mains = mains.iter().map(|container| SpecOfContainer {
        name: &container.name,
        image: container.image.as_deref(),
        kind: ContainerKind::Main,
        message_policy: container.termination_message_policy.as_deref(),
    });
    let debuggers = debuggers.iter().map(|container| SpecOfContainer {
        name: &container.name,
        image: container.image.as_deref(),
        kind: ContainerKind::Ephemeral,
        message_policy: None,
    });
    let mut containers =
        of_list(inits, status.and_then(|s| s.init_container_statuses.as_deref()), message_max);
    containers.extend(of_list(mains, status.and_then(|s| s.container_statuses.as_deref()), message_max));
    containers.extend(of_list(
        debuggers,
        status.and_then(|s| s.ephemeral_container_statuses.as_deref()),
        message_max,
    ));
    PodFacts {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        // Kubernetes takes any name here.
        node: spec.and_then(|s| s.node_name.as_deref()).map(|name| cut(name, OBJECT_NAME_MAX)),
        phase: status.and_then(|s| s.phase.clone()).unwrap_or_default(),
        reason: status.and_then(|s| s.reason.clone()),
        message: status.and_then(|s| s.message.as_deref()).map(|text| cut(text, MESSAGE_MAX)),
        disruption: condition("DisruptionTarget", "True").and_then(|c| c.reason.clone()),
        disruption_message: condition("DisruptionTarget", "True")
            .and_then(|c| c.message.as_deref())
            .map(|text| cut(text, MESSAGE_MAX)),
        unschedulable: condition("PodScheduled", "False")
            .and_then(|c| c.message.as_deref())
            .map(|text| cut(text, MESSAGE_MAX)),
        index: pod.labels().get(COMPLETION_INDEX).and_then(|index| index.parse().ok()),
        gone: false,
        containers,
    }
}

/// The containers of one list. Of a list that is too long, the last entry counts the rest.
fn of_list<'a>(
    list: impl ExactSizeIterator<Item = SpecOfContainer<'a>>,
    statuses: Option<&[ContainerStatus]>,
    message_max: usize,
) -> Vec<ContainerFacts> {
    let statuses = statuses.unwrap_or_default();
    let all = list.len();
    let kept = if all > CONTAINERS_MAX { CONTAINERS_MAX - 1 } else { all };
    let of_one = |spec| of_container(spec, statuses, message_max);
    let mut containers: Vec<_> = list.take(kept).map(of_one).collect();
    if all > kept {
        let kind = containers.last().map(|container| container.kind).unwrap_or_default();
        let name = format!("{} more containers", all - kept);
        containers.push(ContainerFacts { name, kind, state: unknown(), ..ContainerFacts::default() });
    }
    containers
}

/// Whether this is not a container, but the number of those that are left out: a container's name has no space.
pub(crate) fn is_rest(container: &ContainerFacts) -> bool {
    container.name.contains(' ')
}

fn of_container(
    spec: SpecOfContainer<'_>,
    statuses: &[ContainerStatus],
    message_max: usize,
) -> ContainerFacts {
    let SpecOfContainer { name, image, kind, message_policy } = spec;
    let image = cut(image.unwrap_or_default(), IMAGE_MAX);
    let Some(status) = statuses.iter().find(|status| status.name == name) else {
        return ContainerFacts {
            name: name.to_owned(),
            kind,
            image,
            state: unknown(),
            ..ContainerFacts::default()
        };
    };
    let facts = |state: &ContainerState, before| of_state(state, status, before, message_max);
    let last = status.last_state.as_ref().filter(|s| s.terminated.is_some());
    ContainerFacts {
        name: name.to_owned(),
        kind,
        image,
        image_id: cut(&status.image_id, IMAGE_MAX),
        ready: status.ready,
        restart_count: status.restart_count,
        started: status.started,
        state: status.state.as_ref().map_or_else(StateFacts::default, |state| facts(state, 0)),
        last_state: last.map(|state| facts(state, 1)),
        tells_by_log: message_policy == Some("FallbackToLogsOnError"),
        logs: Vec::new(),
    }
}

fn unknown() -> StateFacts {
    StateFacts { phase: "unknown".into(), ..StateFacts::default() }
}

/// `before` counts runs back from the current one.
fn of_state(state: &ContainerState, status: &ContainerStatus, before: i32, message_max: usize) -> StateFacts {
    let ended = state.terminated.as_ref().and_then(|end| end.container_id.clone());
    let id = if before == 0 { ended.or_else(|| status.container_id.clone()) } else { ended };
    // Every runtime sets an ID; the number is for statuses written by other programs.
    let id = id.filter(|id| !id.is_empty());
    let id = id.unwrap_or_else(|| format!("{}#{}", status.name, status.restart_count - before));
    if let Some(end) = &state.terminated {
        StateFacts {
            phase: "terminated".into(),
            reason: end.reason.clone(),
            message: end.message.as_deref().map(|text| cut(text, message_max)),
            exit_code: Some(end.exit_code),
            signal: end.signal,
            started: end.started_at.as_ref().map(|t| t.0),
            finished: end.finished_at.as_ref().map(|t| t.0),
            id,
        }
    } else if let Some(run) = &state.running {
        let started = run.started_at.as_ref().map(|t| t.0);
        StateFacts { phase: "running".into(), started, id, ..StateFacts::default() }
    } else if let Some(wait) = &state.waiting {
        StateFacts {
            phase: "waiting".into(),
            reason: wait.reason.clone(),
            message: wait.message.as_deref().map(|text| cut(text, message_max)),
            ..StateFacts::default()
        }
    } else {
        unknown()
    }
}

/// At most `max` bytes of a text.
fn cut(text: &str, max: usize) -> String {
    let mut text = text.to_owned();
    truncate(&mut text, max);
    // It would keep the memory of the whole text.
    text.shrink_to_fit();
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A pod with a main container, an init container and a sidecar.
    pub(crate) fn pod(status: serde_json::Value) -> PodFacts {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a-1", "uid": "p"},
            "spec": {"containers": [{"name": "main", "image": "busybox"}],
                "initContainers": [{"name": "setup"}, {"name": "proxy", "restartPolicy": "Always"}]},
            "status": status,
        }))
        .unwrap();
        of_pod(&pod)
    }

    /// Bytes that the texts of the containers take.
    fn texts_of(facts: &PodFacts) -> usize {
        let of_state = |state: &StateFacts| state.message.as_ref().map_or(0, String::capacity);
        let of_one = |c: &ContainerFacts| {
            let states = of_state(&c.state) + c.last_state.as_ref().map_or(0, of_state);
            c.image.capacity() + c.image_id.capacity() + states
        };
        facts.containers.iter().map(of_one).sum()
    }

    /// Its author writes most texts of a pod, and the kubelet repeats them in its messages.
    #[test]
    fn of_a_pod_that_is_filled_a_bounded_part_is_kept() {
        let filler = "ü".repeat(5_000);
        let filled = |count: usize| -> PodFacts {
            let names = || (0..count).map(|n| format!("c{n}"));
            let containers: Vec<_> =
                names().map(|name| json!({"name": name, "image": filler, "args": [filler]})).collect();
            let state = json!({"waiting": {"reason": "ErrImagePull", "message": filler}});
            let before = json!({"terminated": {"exitCode": 1, "message": filler}});
            let status = |name: String| {
                json!({"name": name, "image": filler, "imageID": filler, "ready": false,
                "restartCount": 1, "state": state, "lastState": before})
            };
            let statuses: Vec<_> = names().map(status).collect();
            let unscheduled = json!({"type": "PodScheduled", "status": "False", "message": filler});
            let disrupted = json!({"type": "DisruptionTarget", "status": "True", "message": filler});
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "a", "uid": "p", "annotations": {"a": filler}, "finalizers": [filler]},
                "spec": {"nodeName": filler, "hostAliases": [{"ip": filler}], "containers": containers,
                    "initContainers": containers},
                "status": {"phase": "Pending", "message": filler, "conditions": [unscheduled, disrupted],
                    "containerStatuses": statuses, "initContainerStatuses": statuses},
            }))
            .unwrap();
            of_pod(&pod)
        };
        let large = filled(100);
        let others = [&large.node, &large.message, &large.disruption_message, &large.unschedulable]
            .map(|text| text.as_ref().unwrap());
        assert_eq!(others.map(|text| text.capacity() <= MESSAGE_MAX), [true; 4]);
        assert_eq!(large.containers.len(), 2 * CONTAINERS_MAX);
        let most = 2 * CONTAINERS_MAX * 2 * IMAGE_MAX + 2 * POD_MESSAGES_MAX;
        assert!(texts_of(&large) <= most, "{}", texts_of(&large));
        let rest = &large.containers[2 * CONTAINERS_MAX - 1];
        assert_eq!((rest.name.as_str(), rest.kind), ("37 more containers", ContainerKind::Main));
        assert!(is_rest(rest) && !is_rest(&large.containers[CONTAINERS_MAX]));
        let most_listed = filled(CONTAINERS_MAX);
        assert_eq!(most_listed.containers.len(), 2 * CONTAINERS_MAX);
        assert!(!most_listed.containers.iter().any(is_rest));
    }

    #[test]
    fn what_a_usual_pod_says_is_kept_whole() {
        let (message, id) =
            ("m".repeat(MESSAGE_MAX), format!("{}@sha256:{}", "r".repeat(255), "0".repeat(64)));
        let state = json!({"terminated": {"exitCode": 1, "message": message}});
        let facts =
            pod(json!({"containerStatuses": [{"name": "main", "image": "", "imageID": id, "ready": false,
            "restartCount": 0, "state": state}]}));
        let main = &facts.containers[2];
        assert_eq!((main.image.as_str(), &main.image_id), ("busybox", &id));
        assert_eq!(main.state.message.as_ref(), Some(&message));
    }

    #[test]
    fn every_kind_of_container_is_listed() {
        let kinds: Vec<_> = pod(json!({"phase": "Pending"})).containers.iter().map(|c| c.kind).collect();
        assert_eq!(kinds, [ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::Main]);
    }
}
