//! How the states of pods explain the Job's outcome. Pure.
//!
//! Job reason, pod reason and container reason are kept apart: exit code 137 alone is not OOM, and a pod that was
//! evicted says so itself.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    result::pods::{ContainerFacts, ContainerKind, PodFacts, StateFacts},
    text::truncate,
};

use crate::harvest::{
    failure::{self, BlamedRun},
    telling_line::telling_line,
};

/// Longest decisive line, bytes.
const DECISIVE_MAX: usize = 600;
/// Length from which on a termination message was cut off, bytes: the kubelet's limit, less a character of UTF-8 that it may
/// have split.
const CUT_MESSAGE: usize = 4096 - 3;

/// How much a pod explains the outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodRelevance {
    pub(crate) failed: bool,
    /// It was deleted before the Job finished, usually because of another pod.
    pub(crate) gone: bool,
    pub(crate) created: Option<jiff::Timestamp>,
    pub(crate) name: String,
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
        Outcome::Completed => main_container(pods, Outcome::Completed).map(by_message).unwrap_or_default(),
        Outcome::Failed => {
            let found =
                failure::by_weight(&finished.message, pods).find_map(|pod| of_failed_pod(pod, last_line));
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
        let reason = pod.reason.as_deref().or(pod.disruption.as_deref()).unwrap_or_default();
        return Some(format!("pod {} was {reason}{}", pod.name, why_disrupted(pod)));
    }
    let waits = |container: &ContainerFacts| {
        let state = &container.state;
        let reason = state.reason.as_deref().filter(|_| state.phase == "waiting")?;
        let why =
            state.message.as_deref().map(|m| format!(": {}", telling_line(m, false))).unwrap_or_default();
        (!matches!(reason, "PodInitializing" | "ContainerCreating"))
            .then(|| format!("container {} of pod {} never started, {reason}{why}", container.name, pod.name))
    };
    let blamed = || {
        let BlamedRun { container, state, previous, .. } = failure::blamed(pod)?;
        let Some(code) = state.exit_code else { return waits(container) };
        let how = match (&state.reason, state.signal) {
            (Some(reason), _) if reason != "Error" => format!("ended with {reason}, exit code {code}"),
            (_, Some(signal)) if signal != 0 => format!("was killed by signal {signal}"),
            _ => format!("ended with exit code {code}"),
        };
        let message = Some(telling_message(container, state)).filter(|line| !line.is_empty());
        let why = message.or_else(|| last_line(&pod.name, &container.name, previous));
        let why = why.map(|line| format!(": {line}")).unwrap_or_default();
        Some(format!("container {} of pod {} {how}{why}", container.name, pod.name))
    };
    let placed = || {
        let why = pod.unschedulable.as_deref()?;
        Some(format!("pod {} was never scheduled: {}", pod.name, telling_line(why, false)))
    };
    // A node that was lost with its pods says nothing of their containers.
    let lost = || {
        let reason = failure::of_pod(pod)?.reason;
        Some(format!("pod {} failed with {reason}{}", pod.name, why_disrupted(pod)))
    };
    blamed().or_else(|| pod.containers.iter().find_map(waits)).or_else(placed).or_else(lost)
}

/// Why a pod was evicted or lost, after a colon: only the kubelet writes a message of the pod, others that of the condition.
fn why_disrupted(pod: &PodFacts) -> String {
    let messages = [&pod.message, &pod.disruption_message].into_iter().flatten();
    let mut lines = messages.map(|text| telling_line(text, false)).filter(|line| !line.is_empty());
    lines.next().map(|line| format!(": {line}")).unwrap_or_default()
}

/// The line of a container's termination message that tells best why it ended. The kubelet cuts off the beginning of a long
/// one (`pkg/kubelet/kuberuntime/kuberuntime_container.go`, `readLastStringFromContainerLogs` and `getTerminationMessage`).
fn telling_message(container: &ContainerFacts, state: &StateFacts) -> String {
    let message = state.message.as_deref().unwrap_or_default();
    telling_line(message, container.tells_by_log || message.len() >= CUT_MESSAGE)
}

fn by_message(container: &ContainerFacts) -> String {
    telling_message(container, &container.state)
}

/// The termination message of the first main container of the first pod that ended as the Job did.
pub(crate) fn termination_message(pods: &[PodFacts], outcome: Outcome) -> Option<&str> {
    main_container(pods, outcome)?.state.message.as_deref().filter(|message| !message.is_empty())
}

fn main_container(pods: &[PodFacts], outcome: Outcome) -> Option<&ContainerFacts> {
    let phase = match outcome {
        Outcome::Completed => "Succeeded",
        Outcome::Failed => "Failed",
    };
    let pod = pods.iter().find(|pod| pod.phase == phase)?;
    pod.containers.iter().find(|container| container.kind == ContainerKind::Main)
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{job::snapshot::Finished, result::failure::Cause};
    use serde_json::json;

    use super::*;
    use crate::harvest::pod_facts::tests::pod;

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
    fn the_end_of_a_log_is_told_by_its_last_line() {
        let job = failed("BackoffLimitExceeded");
        let line = |pod: &PodFacts| decisive_line(&job, std::slice::from_ref(pod), &|_, _, _| None);
        let mut failed_pod = pod(ended("Error", 3));
        assert!(line(&failed_pod).ends_with(": boom"));
        let main = failed_pod.containers.iter_mut().find(|c| c.kind == ContainerKind::Main).unwrap();
        main.tells_by_log = true;
        assert!(line(&failed_pod).ends_with(": more"));
        let main = failed_pod.containers.iter_mut().find(|c| c.kind == ContainerKind::Main).unwrap();
        main.tells_by_log = false;
        main.state.message = Some(format!("{}\nEND", "x".repeat(4092)));
        assert!(line(&failed_pod).ends_with(": END"));
    }

    #[test]
    fn an_eviction_is_told_by_its_condition() {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint"});
        let evicted = pod(json!({"phase": "Running", "conditions": [condition]}));
        let job = failed("BackoffLimitExceeded");
        let line = "pod a-1 was DeletionByTaintManager: Taint manager: deleting due to NoExecute taint";
        assert_eq!(decisive_line(&job, &[evicted], &|_, _, _| None), line);
        let lost = pod(json!({"phase": "Failed", "reason": "NodeLost", "message": "Node n is unresponsive"}));
        let line = "pod a-1 failed with NodeLost: Node n is unresponsive";
        assert_eq!(decisive_line(&job, &[lost], &|_, _, _| None), line);
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
}
