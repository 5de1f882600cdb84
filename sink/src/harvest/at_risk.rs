//! Which pods are about to go, and which of their logs are to be had now. Pure.
//!
//! The Job controller deletes active pods before it sets the terminal condition (`pkg/controller/job/job_controller.go`,
//! `syncJob`: past the deadline, past the backoff limit, `FailJob`, success policies) and when a Job is suspended; the
//! kubelet removes the containers of deleted and evicted pods with their logs (`pkg/kubelet/pod_workers.go`).

use std::time::Duration;

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    result::pods::{ContainerFacts, PodFacts, StateFacts},
};

/// Pods are followed from so long before their Job's deadline: the clocks of nodes and controllers are apart, and
/// `startTime` is in whole seconds.
pub const LEAD: Duration = Duration::from_secs(10);

/// A log that is to be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Container.
    pub container: String,
    /// The run.
    pub id: String,
    /// It is the run before the present one.
    pub previous: bool,
    /// How.
    pub how: How,
}

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// To its end: the run is over.
    Read,
    /// Until the run is over, which may be any moment.
    FollowNow,
    /// Until the run is over, which may take long: the container was restarted, and its pod goes with some later restart.
    FollowLong,
}

/// Whether a Job's active pods may be deleted now.
pub fn is_at_risk(job: &JobSnapshot, now: Timestamp) -> bool {
    job.finishing || job.suspended || near(job).is_some_and(|near| near <= now)
}

/// When the Job's deadline comes near.
pub fn near(job: &JobSnapshot) -> Option<Timestamp> {
    let deadline = jiff::SignedDuration::from_secs(job.deadline?);
    let lead = jiff::SignedDuration::from_secs(LEAD.as_secs().cast_signed());
    // A deadline beyond the end of time is none.
    job.started?.checked_add(deadline).ok()?.checked_sub(lead).ok()
}

/// The logs of a pod that are to be had now.
pub fn wishes(pod: &PodFacts, deleting: bool, job_at_risk: bool) -> Vec<Wish> {
    let at_risk = deleting || job_at_risk || pod.disruption.is_some();
    pod.containers.iter().flat_map(|container| of_container(container, at_risk)).collect()
}

fn of_container(container: &ContainerFacts, at_risk: bool) -> impl Iterator<Item = Wish> {
    let wish = |state: &StateFacts, previous, how| Wish {
        container: container.name.clone(),
        id: state.id.clone(),
        previous,
        how,
    };
    let before = container.last_state.as_ref().map(|state| wish(state, true, How::Read));
    let state = &container.state;
    let now = match state.phase.as_str() {
        "terminated" => Some(How::Read),
        "running" if at_risk => Some(How::FollowNow),
        "running" if before.is_some() => Some(How::FollowLong),
        _ => None,
    };
    before.into_iter().chain(now.map(|how| wish(state, false, how)))
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
    fn what_is_to_be_had_now() {
        let ended = || Some(state("terminated", "1"));
        let (running, over, waiting) =
            (state("running", "2"), state("terminated", "2"), state("waiting", ""));
        for (now, before, deleting, at_risk, expected) in [
            // A container that runs and is in no danger is left in peace.
            (&running, None, false, false, vec![]),
            (&waiting, None, true, true, vec![]),
            (&over, None, false, false, vec![("2", false, How::Read)]),
            (&running, None, true, false, vec![("2", false, How::FollowNow)]),
            (&running, None, false, true, vec![("2", false, How::FollowNow)]),
            (&running, ended(), false, false, vec![("1", true, How::Read), ("2", false, How::FollowLong)]),
            (&running, ended(), true, false, vec![("1", true, How::Read), ("2", false, How::FollowNow)]),
            (&waiting, ended(), false, false, vec![("1", true, How::Read)]),
        ] {
            let found = wishes(&pod(now.clone(), before.clone()), deleting, at_risk);
            let found: Vec<_> = found.iter().map(|w| (w.id.as_str(), w.previous, w.how)).collect();
            assert_eq!(found, expected, "{now:?} {before:?} {deleting} {at_risk}");
        }
        let mut disrupted = pod(running.clone(), None);
        disrupted.disruption = Some("EvictionByEvictionAPI".into());
        assert_eq!(wishes(&disrupted, false, false)[0].how, How::FollowNow);
    }

    #[test]
    fn a_job_is_at_risk_shortly_before_its_deadline() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |seconds| start + jiff::SignedDuration::from_secs(seconds);
        let job = JobSnapshot { started: Some(start), deadline: Some(60), ..JobSnapshot::default() };
        assert_eq!(near(&job), Some(after(50)));
        assert!(!is_at_risk(&job, after(49)) && is_at_risk(&job, after(50)));
        let endless = JobSnapshot { deadline: Some(i64::MAX), ..job.clone() };
        assert_eq!(near(&endless), None);
        assert!(!is_at_risk(&JobSnapshot { started: None, ..job.clone() }, after(99)));
        for (finishing, suspended) in [(true, false), (false, true)] {
            assert!(is_at_risk(&JobSnapshot { finishing, suspended, ..JobSnapshot::default() }, start));
        }
    }
}
