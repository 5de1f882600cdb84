//! What a result tells of a Job without a word of what its containers wrote. Pure.
//!
//! Whoever has a result kept in a Secret wants it read by those alone who may read Secrets. Events and CloudEvents about
//! it go further than that, and so does a ConfigMap, where the rights on Secrets are missing: these say how the Job ended,
//! and with which codes and reasons, all of which its pods' statuses tell without a container's doing.

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::results::{Logs, LogsMode},
    result::pods::{PodFacts, StateFacts},
};

use crate::harvest::{captured::Captured, pod_status};

/// What is to be captured where nothing that containers wrote may be kept.
pub fn nothing_written(wanted: &Logs) -> Logs {
    Logs { mode: LogsMode::None, ..wanted.clone() }
}

/// Takes out what containers wrote: logs that were captured before, and termination messages.
pub fn conceal(captured: &mut Captured) {
    for pod in &mut captured.pods {
        pod.logs.clear();
        strip(&mut pod.facts);
    }
}

/// The decisive line of a manifest with these pods, without what containers wrote.
pub fn line(job: &JobSnapshot, pods: &[PodFacts]) -> String {
    let mut pods = pods.to_vec();
    pods.iter_mut().for_each(strip);
    pod_status::decisive(job, &pods, &|_, _, _| None)
}

fn strip(pod: &mut PodFacts) {
    for container in &mut pod.containers {
        container.logs.clear();
        for state in [Some(&mut container.state), container.last_state.as_mut()].into_iter().flatten() {
            // A container that waits has written nothing: its message is the kubelet's.
            if is_of_container(state) {
                state.message = None;
            }
        }
    }
}

fn is_of_container(state: &StateFacts) -> bool {
    state.phase != "waiting"
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::{Finished, Outcome};

    use super::*;
    use crate::harvest::{
        captured::{CapturedLog, CapturedPod},
        pack,
    };
    use job_handler_shared::result::pods::{ContainerFacts, LogFacts};

    const SECRET: &str = "password=hunter2";

    fn state(phase: &str, exit_code: Option<i32>) -> StateFacts {
        StateFacts { phase: phase.into(), exit_code, message: Some(SECRET.into()), ..StateFacts::default() }
    }

    fn captured() -> Captured {
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
        let log =
            CapturedLog { container: "main".into(), lost: Some(SECRET.into()), ..CapturedLog::default() };
        Captured { pods: vec![CapturedPod { facts, created: None, logs: vec![log] }], ..Captured::default() }
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
    fn nothing_that_a_container_wrote_is_left() {
        for outcome in [Outcome::Failed, Outcome::Completed] {
            let mut captured = captured();
            if outcome == Outcome::Completed {
                captured.pods[0].facts.phase = "Succeeded".into();
            }
            let pack = |captured, logs: &Logs| pack::pack(&job(outcome), None, captured, logs).unwrap();
            let whole = pack(captured.clone(), &Logs::default());
            assert!(format!("{whole:?}").contains(SECRET), "else this proves nothing");
            let told = line(&job(outcome), &whole.manifest.pods);
            assert!(!told.contains(SECRET), "{told}");
            conceal(&mut captured);
            let mut concealed = pack(captured, &nothing_written(&Logs::default()));
            assert_eq!(concealed.manifest.decisive, told);
            let map = serde_json::to_string(&concealed.map("build-results", None).unwrap()).unwrap();
            assert!(!map.contains(SECRET) && !format!("{concealed:?}").contains(SECRET), "{map}");
            assert!(map.contains("no such image"), "what the kubelet says stays: {map}");
        }
        let pods = [captured().pods.remove(0).facts];
        assert!(line(&job(Outcome::Failed), &pods).contains("exit code 3"));
    }
}
