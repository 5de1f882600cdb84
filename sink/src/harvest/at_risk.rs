//! Which pods may be deleted soon, and which of their logs to capture now. Pure.
//!
//! The Job controller deletes active pods before it sets the terminal condition (`pkg/controller/job/job_controller.go`,
//! `syncJob`: past the deadline, past the backoff limit, `FailJob`, success policies) and when a Job is suspended; the
//! kubelet removes the containers of deleted and evicted pods with their logs (`pkg/kubelet/pod_workers.go`).

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    result::pods::{ContainerFacts, PodFacts, StateFacts},
};

use crate::harvest::{placeholder, tuning::DEADLINE_LEAD};

/// A log to capture now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CapturePlan {
    pub(crate) container: String,
    /// The container runtime's ID of the run.
    pub(crate) id: String,
    /// It is the run before the last restart.
    pub(crate) previous: bool,
    pub(crate) mode: CaptureMode,
}

/// How far a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureMode {
    /// To its end: the run has ended.
    Read,
    /// Until the run ends, which may be at any moment.
    FollowNow,
    /// Until the run ends, which may take long: the container was restarted, and a later restart may end its pod.
    FollowLong,
}

/// Whether a Job's active pods may be deleted now.
pub(crate) fn is_at_risk(job: &JobSnapshot, now: Timestamp) -> bool {
    job.finishing || job.suspended || at_risk_from(job).is_some_and(|from| from <= now)
}

/// The time from which the Job's deadline is near; none without a start or a deadline.
pub(crate) fn at_risk_from(job: &JobSnapshot) -> Option<Timestamp> {
    let deadline = jiff::SignedDuration::from_secs(job.deadline?);
    let lead = jiff::SignedDuration::from_secs(DEADLINE_LEAD.as_secs().cast_signed());
    // A deadline that overflows never passes.
    job.started?.checked_add(deadline).ok()?.checked_sub(lead).ok()
}

/// The logs of a pod to capture now.
pub(crate) fn capture_plans(pod: &PodFacts, deleting: bool, job_at_risk: bool) -> Vec<CapturePlan> {
    let at_risk = deleting || job_at_risk || pod.disruption.is_some();
    pod.containers.iter().flat_map(|container| of_container(container, at_risk)).collect()
}

fn of_container(container: &ContainerFacts, at_risk: bool) -> impl Iterator<Item = CapturePlan> {
    let plan = |state: &StateFacts, previous, mode| CapturePlan {
        container: container.name.clone(),
        id: state.id.clone(),
        previous,
        mode,
    };
    let before = container.last_state.as_ref().map(|state| plan(state, true, CaptureMode::Read));
    let state = &container.state;
    let now = match state.phase.as_str() {
        "terminated" if placeholder::ran(state) => Some(CaptureMode::Read),
        "running" if at_risk => Some(CaptureMode::FollowNow),
        "running" if before.is_some() => Some(CaptureMode::FollowLong),
        _ => None,
    };
    before.into_iter().chain(now.map(|mode| plan(state, false, mode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: &str, id: &str) -> StateFacts {
        StateFacts { phase: phase.into(), id: id.into(), ..StateFacts::default() }
    }

    fn pod(now: StateFacts, before: Option<StateFacts>) -> PodFacts {
        let container = ContainerFacts {
            name: "main".into(),
            state: now,
            last_state: before,
            ..ContainerFacts::default()
        };
        PodFacts { containers: vec![container], ..PodFacts::default() }
    }

    #[test]
    fn ended_runs_are_read_and_pods_at_risk_are_followed() {
        let ended = || Some(state("terminated", "1"));
        let (running, over, waiting) =
            (state("running", "2"), state("terminated", "2"), state("waiting", ""));
        for (now, before, deleting, at_risk, expected) in [
            // A running container that is not at risk is not followed.
            (&running, None, false, false, vec![]),
            (&waiting, None, true, true, vec![]),
            (&over, None, false, false, vec![("2", false, CaptureMode::Read)]),
            (&running, None, true, false, vec![("2", false, CaptureMode::FollowNow)]),
            (&running, None, false, true, vec![("2", false, CaptureMode::FollowNow)]),
            (
                &running,
                ended(),
                false,
                false,
                vec![("1", true, CaptureMode::Read), ("2", false, CaptureMode::FollowLong)],
            ),
            (
                &running,
                ended(),
                true,
                false,
                vec![("1", true, CaptureMode::Read), ("2", false, CaptureMode::FollowNow)],
            ),
            (&waiting, ended(), false, false, vec![("1", true, CaptureMode::Read)]),
        ] {
            let found = capture_plans(&pod(now.clone(), before.clone()), deleting, at_risk);
            let found: Vec<_> = found.iter().map(|w| (w.id.as_str(), w.previous, w.mode)).collect();
            assert_eq!(found, expected, "{now:?} {before:?} {deleting} {at_risk}");
        }
        let mut disrupted = pod(running.clone(), None);
        disrupted.disruption = Some("EvictionByEvictionAPI".into());
        assert_eq!(capture_plans(&disrupted, false, false)[0].mode, CaptureMode::FollowNow);
    }

    #[test]
    fn a_job_is_at_risk_shortly_before_its_deadline() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| start + jiff::SignedDuration::from_secs(seconds);
        let job = JobSnapshot { started: Some(start), deadline: Some(60), ..JobSnapshot::default() };
        assert_eq!(at_risk_from(&job), Some(after(50)));
        assert!(!is_at_risk(&job, after(49)) && is_at_risk(&job, after(50)));
        let endless = JobSnapshot { deadline: Some(i64::MAX), ..job.clone() };
        assert_eq!(at_risk_from(&endless), None);
        assert!(!is_at_risk(&JobSnapshot { started: None, ..job.clone() }, after(99)));
        for (finishing, suspended) in [(true, false), (false, true)] {
            assert!(is_at_risk(&JobSnapshot { finishing, suspended, ..JobSnapshot::default() }, start));
        }
    }
}
