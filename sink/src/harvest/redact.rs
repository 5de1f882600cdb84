//! Removes everything that containers wrote. Pure.
//!
//! A result in a Secret is meant for readers of Secrets only. Events and CloudEvents about it have more readers, and so does
//! the ConfigMap that replaces it if the rights on Secrets are missing. These contain only how the Job ended, with exit
//! codes and reasons, which come from the kubelet and the Job controller.

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::results::{Logs, LogsMode},
    result::pods::{PodFacts, StateFacts},
};

use crate::harvest::{captured::CapturedPods, pod_status};

/// The settings for a result that must not contain what containers wrote.
pub(crate) fn without_logs(wanted: &Logs) -> Logs {
    Logs { mode: LogsMode::None, ..wanted.clone() }
}

/// Removes logs and termination messages.
pub(crate) fn redact(captured: &mut CapturedPods) {
    for pod in &mut captured.pods {
        pod.logs.clear();
        strip(&mut pod.facts);
    }
}

/// The decisive line of these pods, without what containers wrote.
pub(crate) fn public_line(job: &JobSnapshot, pods: &[PodFacts]) -> String {
    let mut pods = pods.to_vec();
    pods.iter_mut().for_each(strip);
    pod_status::decisive_line(job, &pods, &|_, _, _| None)
}

fn strip(pod: &mut PodFacts) {
    for container in &mut pod.containers {
        container.logs.clear();
        for state in [Some(&mut container.state), container.last_state.as_mut()].into_iter().flatten() {
            // A container that waits has written nothing: the message is the kubelet's.
            if is_written_by_container(state) {
                state.message = None;
            }
        }
    }
}

fn is_written_by_container(state: &StateFacts) -> bool {
    state.phase != "waiting"
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::{Finished, Outcome};

    use super::*;
    use crate::harvest::{
        captured::{CapturedLog, CapturedPod, LogLoss},
        pack,
    };
    use job_handler_shared::result::pods::{ContainerFacts, LogFacts};

    const SECRET: &str = "password=hunter2";

    fn state(phase: &str, exit_code: Option<i32>) -> StateFacts {
        StateFacts { phase: phase.into(), exit_code, message: Some(SECRET.into()), ..StateFacts::default() }
    }

    fn captured() -> CapturedPods {
        let container = ContainerFacts {
            name: "main".into(),
            state: state("terminated", Some(3)),
            last_state: Some(state("terminated", Some(4))),
            logs: vec![LogFacts { sha256: SECRET.into(), ..LogFacts::default() }],
            ..ContainerFacts::default()
        };
        let mut waits = container.clone();
        waits.state = StateFacts {
            phase: "waiting".into(),
            message: Some("no such image".into()),
            ..StateFacts::default()
        };
        let facts = PodFacts {
            name: "build-x".into(),
            phase: "Failed".into(),
            containers: vec![container, waits],
            ..PodFacts::default()
        };
        let lost = Some(LogLoss::Final(SECRET.into()));
        let log = CapturedLog { container: "main".into(), lost, ..CapturedLog::default() };
        CapturedPods {
            pods: vec![CapturedPod { facts, created: None, logs: vec![log] }],
            ..CapturedPods::default()
        }
    }

    fn job(outcome: Outcome) -> JobSnapshot {
        let finished = Finished {
            outcome,
            reason: "BackoffLimitExceeded".into(),
            message: "m".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        JobSnapshot { name: "build".into(), finished: Some(finished), ..JobSnapshot::default() }
    }

    #[test]
    fn redaction_removes_everything_that_containers_wrote() {
        for outcome in [Outcome::Failed, Outcome::Completed] {
            let mut captured = captured();
            if outcome == Outcome::Completed {
                captured.pods[0].facts.phase = "Succeeded".into();
            }
            let pack = |captured, logs: &Logs| pack::pack(&job(outcome), None, captured, logs).unwrap();
            let full = pack(captured.clone(), &Logs::default());
            assert!(format!("{full:?}").contains(SECRET), "the test data contains the secret");
            let line = public_line(&job(outcome), &full.manifest.pods);
            assert!(!line.contains(SECRET), "{line}");
            redact(&mut captured);
            let mut redacted = pack(captured, &without_logs(&Logs::default()));
            assert_eq!(redacted.manifest.decisive, line);
            let map = serde_json::to_string(&redacted.map("build-results", None).unwrap()).unwrap();
            assert!(!map.contains(SECRET) && !format!("{redacted:?}").contains(SECRET), "{map}");
            assert!(map.contains("no such image"), "the kubelet's message remains: {map}");
        }
        let pods = [captured().pods.remove(0).facts];
        assert!(public_line(&job(Outcome::Failed), &pods).contains("exit code 3"));
    }
}
