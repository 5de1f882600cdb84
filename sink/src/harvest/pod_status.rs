//! The states of pods, and how they explain the Job's outcome. Pure.
//!
//! Job reason, pod reason and container reason are kept apart: exit code 137 alone is not OOM, and a pod that was
//! evicted says so itself.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    result::pods::{ContainerFacts, ContainerKind, PodFacts, StateFacts},
    text::truncate,
};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;

use crate::harvest::failure;

/// The kubelet's limit for termination messages; other writers of the status may exceed it.
const MESSAGE_MAX: usize = 4096;
/// Longest decisive line, bytes.
const DECISIVE_MAX: usize = 600;

/// Label with a pod's completion index (`k8s.io/api/batch/v1`, `JobCompletionIndexAnnotation`; a label since 1.28).
pub(crate) const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The states of a pod.
pub(crate) fn of_pod(pod: &Pod) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let condition = |kind: &str, is: &str| {
        let all = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        all.iter().find(|c| c.type_ == kind && c.status == is)
    };
    let mut containers = Vec::new();
    let statuses = |list: Option<&Vec<ContainerStatus>>| list.cloned().unwrap_or_default();
    let inits = statuses(status.and_then(|s| s.init_container_statuses.as_ref()));
    for container in spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let kind = if sidecar { ContainerKind::Sidecar } else { ContainerKind::Init };
        containers.push(of_container(&container.name, container.image.as_deref(), kind, &inits));
    }
    let mains = statuses(status.and_then(|s| s.container_statuses.as_ref()));
    for container in spec.map(|s| s.containers.as_slice()).unwrap_or_default() {
        let image = container.image.as_deref();
        containers.push(of_container(&container.name, image, ContainerKind::Main, &mains));
    }
    let debuggers = statuses(status.and_then(|s| s.ephemeral_container_statuses.as_ref()));
    for container in spec.and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default() {
        let image = container.image.as_deref();
        containers.push(of_container(&container.name, image, ContainerKind::Ephemeral, &debuggers));
    }
    PodFacts {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: spec.and_then(|s| s.node_name.clone()),
        phase: status.and_then(|s| s.phase.clone()).unwrap_or_default(),
        reason: status.and_then(|s| s.reason.clone()),
        message: status.and_then(|s| s.message.clone()).map(short),
        disruption: condition("DisruptionTarget", "True").and_then(|c| c.reason.clone()),
        unschedulable: condition("PodScheduled", "False").and_then(|c| c.message.clone()).map(short),
        index: pod.labels().get(COMPLETION_INDEX).and_then(|index| index.parse().ok()),
        gone: false,
        containers,
    }
}

fn of_container(
    name: &str,
    image: Option<&str>,
    kind: ContainerKind,
    statuses: &[ContainerStatus],
) -> ContainerFacts {
    let image = image.unwrap_or_default().to_owned();
    let Some(status) = statuses.iter().find(|status| status.name == name) else {
        let state = StateFacts { phase: "unknown".into(), ..StateFacts::default() };
        return ContainerFacts { name: name.to_owned(), kind, image, state, ..ContainerFacts::default() };
    };
    let last = status.last_state.as_ref().filter(|s| s.terminated.is_some());
    ContainerFacts {
        name: name.to_owned(),
        kind,
        image,
        image_id: status.image_id.clone(),
        ready: status.ready,
        restart_count: status.restart_count,
        started: status.started,
        state: status.state.as_ref().map_or_else(StateFacts::default, |state| of_state(state, status, 0)),
        last_state: last.map(|state| of_state(state, status, 1)),
        logs: Vec::new(),
    }
}

/// `before` counts runs back from the current one.
fn of_state(state: &ContainerState, status: &ContainerStatus, before: i32) -> StateFacts {
    let ended = state.terminated.as_ref().and_then(|end| end.container_id.clone());
    let id = if before == 0 { ended.or_else(|| status.container_id.clone()) } else { ended };
    // Every runtime sets an ID; the number is for statuses written by other programs.
    let id = id.filter(|id| !id.is_empty());
    let id = id.unwrap_or_else(|| format!("{}#{}", status.name, status.restart_count - before));
    if let Some(end) = &state.terminated {
        StateFacts {
            phase: "terminated".into(),
            reason: end.reason.clone(),
            message: end.message.clone().map(short),
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
            message: wait.message.clone().map(short),
            ..StateFacts::default()
        }
    } else {
        StateFacts { phase: "unknown".into(), ..StateFacts::default() }
    }
}

fn short(mut text: String) -> String {
    truncate(&mut text, MESSAGE_MAX);
    text
}

/// How much a pod explains the outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodRelevance {
    pub(crate) failed: bool,
    /// It was deleted before the Job finished, usually because of another pod.
    pub(crate) gone: bool,
    pub(crate) created: Option<jiff::Timestamp>,
    pub(crate) name: String,
}

pub(crate) fn relevance(pod: &Pod) -> PodRelevance {
    PodRelevance {
        failed: pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed"),
        gone: false,
        created: pod.creation_timestamp().map(|t| t.0),
        name: pod.name_any(),
    }
}

/// Orders pods by how much they explain: failed ones first, of these the existing ones, then the newest.
pub(crate) fn by_relevance(a: &PodRelevance, b: &PodRelevance) -> std::cmp::Ordering {
    (b.failed, !b.gone, b.created, &b.name).cmp(&(a.failed, !a.gone, a.created, &a.name))
}

/// The line that explains the outcome best: from the container that failed, else from the pod, else from the Job's
/// condition. Expects pods in the order of [`by_relevance`]. `last_line` returns the end of a container's log, which
/// replaces a missing termination message.
pub(crate) fn decisive_line(job: &JobSnapshot, pods: &[PodFacts], last_line: &LastLine<'_>) -> String {
    let Some(finished) = &job.finished else { return String::new() };
    let mut line = match finished.outcome {
        Outcome::Completed => {
            termination_message(pods, Outcome::Completed).map(first_line).unwrap_or_default()
        }
        Outcome::Failed => {
            let named = pods.iter().filter(|pod| failure::is_named(&finished.message, pod));
            let found = named.chain(pods).find_map(|pod| of_failed_pod(pod, last_line));
            // The deadline explains the kills that follow from it.
            match found {
                Some(line) if finished.reason != "DeadlineExceeded" => line,
                Some(line) => format!("{}; {line}", finished.message),
                None => finished.message.clone(),
            }
        }
    };
    truncate(&mut line, DECISIVE_MAX);
    line
}

/// The last line of a log, by pod, container, and whether it is the previous run's.
pub(crate) type LastLine<'a> = dyn Fn(&str, &str, bool) -> Option<String> + 'a;

fn of_failed_pod(pod: &PodFacts, last_line: &LastLine<'_>) -> Option<String> {
    if pod.reason.as_deref() == Some("Evicted") || pod.disruption.is_some() {
        let why = pod.message.clone().unwrap_or_default();
        let reason = pod.reason.as_deref().or(pod.disruption.as_deref()).unwrap_or_default();
        return Some(format!("pod {} was {reason}: {}", pod.name, first_line(&why)));
    }
    let ended = |container: &ContainerFacts, state: &StateFacts, previous: bool| {
        let code = state.exit_code?;
        let how = match (&state.reason, state.signal) {
            _ if code == 0 && state.signal.is_none() => return None,
            (Some(reason), _) if reason != "Error" => format!("ended with {reason}, exit code {code}"),
            (_, Some(signal)) if signal != 0 => format!("was killed by signal {signal}"),
            _ => format!("ended with exit code {code}"),
        };
        let message = state.message.as_deref().map(first_line).filter(|line| !line.is_empty());
        let why = message.or_else(|| last_line(&pod.name, &container.name, previous));
        let why = why.map(|line| format!(": {line}")).unwrap_or_default();
        Some(format!("container {} of pod {} {how}{why}", container.name, pod.name))
    };
    // For a deleted pod, the end of the previous run explains more than the kill.
    let of_killed = |c: &ContainerFacts| {
        let before = c.last_state.as_ref()?;
        (failure::decisive_runs(pod.gone, c).first() == Some(&before)).then(|| ended(c, before, true))?
    };
    let by_end = pod.containers.iter().find_map(|c| of_killed(c).or_else(|| ended(c, &c.state, false)));
    let waits = || {
        pod.containers.iter().find_map(|c| {
            let reason = c.state.reason.as_deref().filter(|_| c.state.phase == "waiting")?;
            let why = c.state.message.as_deref().map(|m| format!(": {}", first_line(m))).unwrap_or_default();
            (!matches!(reason, "PodInitializing" | "ContainerCreating"))
                .then(|| format!("container {} of pod {} never started, {reason}{why}", c.name, pod.name))
        })
    };
    let by_last = || pod.containers.iter().find_map(|c| ended(c, c.last_state.as_ref()?, true));
    let placed = || {
        let why = pod.unschedulable.as_deref()?;
        Some(format!("pod {} was never scheduled: {}", pod.name, first_line(why)))
    };
    by_end.or_else(waits).or_else(by_last).or_else(placed)
}

/// The termination message of the first main container of the first pod that ended as the Job did.
pub(crate) fn termination_message(pods: &[PodFacts], outcome: Outcome) -> Option<&str> {
    let phase = match outcome {
        Outcome::Completed => "Succeeded",
        Outcome::Failed => "Failed",
    };
    let pod = pods.iter().find(|pod| pod.phase == phase)?;
    let main = pod.containers.iter().find(|container| container.kind == ContainerKind::Main)?;
    main.state.message.as_deref().filter(|message| !message.is_empty())
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::Finished;
    use serde_json::json;

    use super::*;
    use job_handler_shared::result::failure::Cause;

    fn pod(status: serde_json::Value) -> PodFacts {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a-1", "uid": "p"},
            "spec": {"containers": [{"name": "main", "image": "busybox"}],
                "initContainers": [{"name": "setup"}, {"name": "proxy", "restartPolicy": "Always"}]},
            "status": status,
        }))
        .unwrap();
        of_pod(&pod)
    }

    fn ended(reason: &str, code: i32) -> serde_json::Value {
        let state = json!({"terminated": {"reason": reason, "exitCode": code, "message": "\nboom\nmore"}});
        json!({"phase": "Failed", "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": state}]})
    }

    fn failed(reason: &str) -> JobSnapshot {
        let finished = Finished {
            outcome: Outcome::Failed,
            reason: reason.into(),
            message: "Job has reached the specified backoff limit".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        JobSnapshot { finished: Some(finished), ..JobSnapshot::default() }
    }

    #[test]
    fn each_cause_has_its_own_line() {
        let job = failed("BackoffLimitExceeded");
        let evicted = {
            let mut status = ended("Error", 137);
            status["reason"] = "Evicted".into();
            status["message"] = "The node was low on memory".into();
            status
        };
        for (status, expected, line) in [
            (ended("Error", 3), Cause::Error, "container main of pod a-1 ended with exit code 3: boom"),
            (ended("Error", 137), Cause::Error, "container main of pod a-1 ended with exit code 137: boom"),
            (
                ended("OOMKilled", 137),
                Cause::Oom,
                "container main of pod a-1 ended with OOMKilled, exit code 137: boom",
            ),
            (evicted, Cause::Evicted, "pod a-1 was Evicted: The node was low on memory"),
        ] {
            let pods = [pod(status)];
            assert_eq!(
                (failure::overall_cause(&job, &pods), decisive_line(&job, &pods, &|_, _, _| None).as_str()),
                (Some(expected), line)
            );
        }
        assert_eq!(failure::overall_cause(&failed("DeadlineExceeded"), &[]), Some(Cause::Timeout));
        assert_eq!(decisive_line(&job, &[], &|_, _, _| None), "Job has reached the specified backoff limit");
    }

    #[test]
    fn a_pod_that_never_started_says_why() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        let facts = pod(
            json!({"phase": "Pending", "containerStatuses": [{"name": "main", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": waiting}]}),
        );
        let line = decisive_line(&failed("DeadlineExceeded"), &[facts], &|_, _, _| None);
        assert!(
            line.ends_with("container main of pod a-1 never started, ImagePullBackOff: no such image"),
            "{line}"
        );
    }

    #[test]
    fn every_kind_of_container_is_listed() {
        let kinds: Vec<_> = pod(json!({"phase": "Pending"})).containers.iter().map(|c| c.kind).collect();
        assert_eq!(kinds, [ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::Main]);
    }
}
