//! Classifies a failure by level: the Job's condition, the pod's status, and how the container ended. Pure.
//!
//! No level stands for another: exit code 137 alone does not mean "out of memory" (only the container's reason does), and a
//! container that was killed because its pod was evicted has not failed by itself.

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    result::{
        failure::{Cause, Failure, FailureLevel},
        pods::{ContainerFacts, ContainerKind, PodFacts, StateFacts},
    },
};

use crate::harvest::placeholder;

/// The run of a container that explains the failure of its pod best.
pub(crate) struct BlamedRun<'a> {
    pub(crate) container: &'a ContainerFacts,
    pub(crate) state: &'a StateFacts,
    /// It is the run before the last restart.
    pub(crate) previous: bool,
    level: FailureLevel,
}

/// Classifies the failure of a Job; none if it completed. Expects pods in the order of
/// [`crate::harvest::pod_status::by_relevance`].
pub(crate) fn classify(job: &JobSnapshot, pods: &[PodFacts]) -> Option<Failure> {
    let finished = job.finished.as_ref().filter(|f| f.outcome == Outcome::Failed)?;
    let level = FailureLevel {
        cause: Cause::of_condition(&finished.reason),
        reason: finished.reason.clone(),
        ..FailureLevel::default()
    };
    let explains = |pod: &&PodFacts| of_pod(pod).is_some() || blamed(pod).is_some();
    let decides = by_weight(&finished.message, pods).find(explains);
    let container = decides.and_then(blamed).map(|run| run.level);
    Some(Failure { job: level, pod: decides.and_then(of_pod), container })
}

/// The cause of all levels together, for metrics and lists: the deadline first, since it explains the kills that follow from
/// it; then the pod and its container.
pub(crate) fn overall_cause(job: &JobSnapshot, pods: &[PodFacts]) -> Option<Cause> {
    let Failure { job, pod, container } = classify(job, pods)?;
    let of = |level: &Option<FailureLevel>| level.as_ref().map(|level| level.cause);
    Some(match (job.cause, of(&pod), of(&container)) {
        (Cause::Timeout, ..) => Cause::Timeout,
        (_, _, Some(Cause::Oom)) => Cause::Oom,
        (_, Some(pod), _) => pod,
        (_, _, Some(container)) => container,
        _ => Cause::Error,
    })
}

/// The pods in the order in which they decide: those that the condition's message names, then those that failed by more than
/// a sidecar, then all.
pub(crate) fn by_weight<'a>(message: &'a str, pods: &'a [PodFacts]) -> impl Iterator<Item = &'a PodFacts> {
    let is_own = |run: BlamedRun<'_>| run.container.kind != ContainerKind::Sidecar;
    let named = pods.iter().filter(|pod| is_named(message, pod));
    let own = pods.iter().filter(move |pod| of_pod(pod).is_some() || blamed(pod).is_some_and(is_own));
    named.chain(own).chain(pods)
}

/// Whether a condition's message names this pod, as that of a failure policy does.
fn is_named(message: &str, pod: &PodFacts) -> bool {
    let mut words = message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.'));
    words.any(|word| word == pod.name)
}

pub(crate) fn of_pod(pod: &PodFacts) -> Option<FailureLevel> {
    let reason = pod.reason.as_deref();
    let (cause, reason) = match (reason, pod.disruption.as_deref()) {
        // The scheduler or the kubelet preferred another pod.
        (_, Some(reason @ "PreemptionByScheduler")) | (Some(reason @ "Preempting"), _) => {
            (Cause::Preempted, reason)
        }
        (Some(reason @ ("Evicted" | "NodeLost" | "NodeShutdown" | "Terminated" | "Shutdown")), _)
        | (_, Some(reason)) => (Cause::Evicted, reason),
        (Some(reason @ "DeadlineExceeded"), _) => (Cause::Timeout, reason),
        // The node no longer had room, or the right labels, when the pod arrived.
        (Some(reason @ ("NodeAffinity" | "NodePorts" | "UnexpectedAdmissionError")), _) => {
            (Cause::Unschedulable, reason)
        }
        (Some(reason), _) if reason.starts_with("OutOf") => (Cause::Unschedulable, reason),
        _ if pod.unschedulable.is_some() => (Cause::Unschedulable, "Unschedulable"),
        _ => return None,
    };
    Some(FailureLevel { cause, name: pod.name.clone(), reason: reason.to_owned(), ..FailureLevel::default() })
}

/// The run that a pod failed by, of its init or main containers if one of them failed. A native sidecar ends after them, by
/// SIGTERM or SIGKILL; if the pod succeeded, that has no meaning. Nor has the end of a debug container.
pub(crate) fn blamed(pod: &PodFacts) -> Option<BlamedRun<'_>> {
    let counts = |container: &&ContainerFacts| match container.kind {
        ContainerKind::Init | ContainerKind::Main => true,
        ContainerKind::Sidecar => pod.phase != "Succeeded",
        ContainerKind::Ephemeral => false,
    };
    let explains = |container| {
        let mut runs = decisive_runs(pod.gone, container).into_iter().enumerate();
        let (nth, state, level) =
            runs.find_map(|(nth, state)| Some((nth, state, of_state(&container.name, state)?)))?;
        let previous = container.last_state.as_ref().is_some_and(|before| std::ptr::eq(before, state));
        // A container that ended by SIGTERM did so because of another one, if another one failed.
        let killed = was_killed(&level) || placeholder::is_placeholder(state);
        let rank = (container.kind == ContainerKind::Sidecar, killed, nth);
        Some((rank, BlamedRun { container, state, previous, level }))
    };
    pod.containers
        .iter()
        .filter(counts)
        .filter_map(explains)
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, run)| run)
}

fn was_killed(level: &FailureLevel) -> bool {
    level.cause == Cause::Error && matches!(level.exit_code, Some(143))
}

/// A container's runs, the most relevant one first: for a deleted pod, the one before the kill.
fn decisive_runs(gone: bool, container: &ContainerFacts) -> Vec<&StateFacts> {
    let now = &container.state;
    let killed = gone && (now.phase == "running" || matches!(now.exit_code, Some(143)));
    match &container.last_state {
        Some(before) if killed || now.reason.as_deref() == Some("CrashLoopBackOff") => vec![before, now],
        Some(before) => vec![now, before],
        None => vec![now],
    }
}

fn of_state(name: &str, state: &StateFacts) -> Option<FailureLevel> {
    let reason = state.reason.as_deref().unwrap_or_default();
    let cause = match (state.phase.as_str(), reason) {
        ("terminated", "OOMKilled") => Cause::Oom,
        // The runtime could not start it (`pkg/kubelet/kuberuntime`, `StartError`; `ContainerCannotRun` of older ones).
        ("terminated", "StartError" | "ContainerCannotRun") => Cause::Config,
        ("terminated", _) if state.exit_code != Some(0) || state.signal.is_some_and(|signal| signal != 0) => {
            Cause::Error
        }
        // `pkg/kubelet/images/types.go`.
        (
            "waiting",
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed",
        ) => Cause::Image,
        // `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
        (
            "waiting",
            "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "PreStartHookError"
            | "PreCreateHookError"
            | "PostStartHookError",
        ) => Cause::Config,
        _ => return None,
    };
    Some(FailureLevel {
        cause,
        name: name.to_owned(),
        reason: reason.to_owned(),
        exit_code: state.exit_code,
        signal: state.signal.filter(|signal| *signal != 0),
    })
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::Finished;

    use super::*;

    fn failed(reason: &str, message: &str) -> JobSnapshot {
        let finished = Finished {
            outcome: Outcome::Failed,
            reason: reason.into(),
            message: message.into(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        JobSnapshot { finished: Some(finished), ..JobSnapshot::default() }
    }

    fn ended(reason: &str, code: i32) -> StateFacts {
        StateFacts {
            phase: "terminated".into(),
            reason: Some(reason.into()),
            exit_code: Some(code),
            ..StateFacts::default()
        }
    }

    fn waits(reason: &str) -> StateFacts {
        StateFacts { phase: "waiting".into(), reason: Some(reason.into()), ..StateFacts::default() }
    }

    fn pod(state: StateFacts) -> PodFacts {
        let container = ContainerFacts { name: "main".into(), state, ..ContainerFacts::default() };
        PodFacts { name: "a-1".into(), containers: vec![container], ..PodFacts::default() }
    }

    /// Job, pod, container, and overall.
    fn causes(reason: &str, pod: PodFacts) -> (Cause, Option<Cause>, Option<Cause>, Cause) {
        let job = failed(reason, "");
        let pods = [pod];
        let found = classify(&job, &pods).unwrap();
        let of = |level: Option<FailureLevel>| level.map(|level| level.cause);
        (found.job.cause, of(found.pod), of(found.container), overall_cause(&job, &pods).unwrap())
    }

    #[test]
    fn levels_are_kept_apart() {
        use Cause::{Config, Error, Evicted, Image, Oom, Preempted, Timeout, Unschedulable};
        let backoff = "BackoffLimitExceeded";
        let with = |state: StateFacts, reason: Option<&str>, disruption: Option<&str>| PodFacts {
            reason: reason.map(str::to_owned),
            disruption: disruption.map(str::to_owned),
            ..pod(state)
        };
        let nowhere = PodFacts { unschedulable: Some("0/3 nodes".into()), ..pod(waits("")) };
        for (reason, pod, expected) in [
            (backoff, pod(ended("Error", 3)), (Error, None, Some(Error), Error)),
            // Killed, but no reason says that it was for its memory.
            (backoff, pod(ended("Error", 137)), (Error, None, Some(Error), Error)),
            (backoff, pod(ended("OOMKilled", 137)), (Error, None, Some(Oom), Oom)),
            (
                backoff,
                with(ended("Error", 137), Some("Evicted"), Some("TerminationByKubelet")),
                (Error, Some(Evicted), Some(Error), Evicted),
            ),
            (
                backoff,
                with(ended("Error", 143), None, Some("PreemptionByScheduler")),
                (Error, Some(Preempted), Some(Error), Preempted),
            ),
            (
                backoff,
                with(ended("Error", 143), None, Some("DeletionByTaintManager")),
                (Error, Some(Evicted), Some(Error), Evicted),
            ),
            (
                backoff,
                with(StateFacts::default(), Some("OutOfmemory"), None),
                (Error, Some(Unschedulable), None, Unschedulable),
            ),
            (backoff, pod(ended("StartError", 128)), (Error, None, Some(Config), Config)),
            ("DeadlineExceeded", nowhere, (Timeout, Some(Unschedulable), None, Timeout)),
            ("DeadlineExceeded", pod(waits("ImagePullBackOff")), (Timeout, None, Some(Image), Timeout)),
            (
                "DeadlineExceeded",
                pod(waits("CreateContainerConfigError")),
                (Timeout, None, Some(Config), Timeout),
            ),
            ("DeadlineExceeded", pod(ended("OOMKilled", 137)), (Timeout, None, Some(Oom), Timeout)),
            ("DeadlineExceeded", pod(waits("ContainerCreating")), (Timeout, None, None, Timeout)),
            (backoff, pod(ended("Completed", 0)), (Error, None, None, Error)),
        ] {
            assert_eq!(causes(reason, pod.clone()), expected, "{reason} {pod:?}");
        }
    }

    #[test]
    fn in_a_deleted_pod_the_run_before_the_kill_decides() {
        let mut restarted = pod(ended("Error", 143));
        restarted.containers[0].last_state = Some(ended("OOMKilled", 137));
        assert_eq!(
            classify(&failed("B", ""), &[restarted.clone()]).unwrap().container.unwrap().cause,
            Cause::Error
        );
        restarted.gone = true;
        assert_eq!(classify(&failed("B", ""), &[restarted]).unwrap().container.unwrap().cause, Cause::Oom);
    }

    #[test]
    fn a_sidecar_is_blamed_last() {
        let with_sidecar = |main: StateFacts, sidecar: StateFacts| {
            let mut pod = pod(main);
            pod.phase = "Failed".into();
            let kind = ContainerKind::Sidecar;
            let sidecar =
                ContainerFacts { name: "proxy".into(), kind, state: sidecar, ..ContainerFacts::default() };
            pod.containers.insert(0, sidecar);
            pod
        };
        let blamed = |pod: &PodFacts| blamed(pod).map(|run| run.container.name.clone());
        for killed in [ended("OOMKilled", 137), ended("Error", 137)] {
            for main in [ended("Error", 5), ended("Error", 143), waits("ErrImagePull")] {
                let pod = with_sidecar(main, killed.clone());
                assert_eq!(blamed(&pod).as_deref(), Some("main"), "{pod:?}");
                assert_ne!(overall_cause(&failed("B", ""), &[pod]), Some(Cause::Oom));
            }
            let mut alone = with_sidecar(waits("PodInitializing"), killed);
            assert_eq!(blamed(&alone).as_deref(), Some("proxy"));
            // The main container of another pod failed, too.
            let mut other = pod(ended("Error", 5));
            other.name = "a-2".into();
            let found = classify(&failed("B", ""), &[alone.clone(), other]).unwrap();
            assert_eq!(found.container.unwrap().name, "main");
            alone.phase = "Succeeded".into();
            assert_eq!(blamed(&alone), None);
        }
    }

    #[test]
    fn the_pod_that_the_condition_names_decides() {
        let other = PodFacts { name: "a-12".into(), ..pod(ended("Error", 1)) };
        let pods = [other, pod(ended("Error", 42))];
        let message =
            "Container main for pod ci/a-1 failed with exit code 42 matching FailJob rule at index 0";
        let found = classify(&failed("PodFailurePolicy", message), &pods).unwrap();
        assert_eq!(found.container.unwrap().exit_code, Some(42));
        let found = classify(&failed("BackoffLimitExceeded", "m"), &pods).unwrap();
        assert_eq!(found.container.unwrap().exit_code, Some(1));
        assert_eq!(classify(&JobSnapshot::default(), &pods), None);
    }
}
