//! The logs of a Job's pods as one text, and what is missing in it. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    result::{
        manifest::Completeness,
        pods::{PodFacts, Section},
        sections::heading,
    },
    text::ranges,
};

use crate::harvest::{
    captured::{CapturedPod, LogLoss},
    pod_facts,
    telling_line::telling_line,
};

/// Longest part of a log's end that is searched for the line that tells why its process ended, bytes.
const LAST_LINES_MAX: usize = 4096;
/// From this many pods on, logs lost for the same reason share one line.
const SHARED_LINE_PODS: usize = 4;
/// Why the last containers of a very long list are missing, with their logs.
const TOO_MANY: &str = "of so many containers, only the first ones are kept";

/// The logs as one text: one section per container and run, oldest pod first. Records each section in `facts`, which are of
/// the same pods in any order.
pub(crate) fn concatenate(pods: &[CapturedPod], facts: &mut [PodFacts]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut of_pod: HashMap<String, &mut PodFacts> =
        facts.iter_mut().map(|facts| (facts.uid.clone(), facts)).collect();
    for pod in pods {
        for log in &pod.logs {
            if out.last().is_some_and(|b| *b != b'\n') {
                out.push(b'\n');
            }
            out.extend_from_slice(heading(&pod.facts.name, &log.container, log.previous).as_bytes());
            let offset = out.len();
            log.excerpt.write_to(&mut out);
            if let Some(lost) = &log.lost {
                if out.last().is_some_and(|b| *b != b'\n') {
                    out.push(b'\n');
                }
                let word = if lost.is_over_budget() { "truncated" } else { "lost" };
                out.extend_from_slice(format!("[{word}: {lost}]\n").as_bytes());
            }
            let section = Section { offset: offset as u64, bytes: (out.len() - offset) as u64 };
            let containers = of_pod.get_mut(&pod.facts.uid).map(|facts| facts.containers.iter_mut());
            let mut containers = containers.into_iter().flatten().filter(|c| c.name == log.container);
            let of_log =
                containers.find_map(|c| c.logs.iter_mut().find(|facts| facts.previous == log.previous));
            if let Some(of_log) = of_log {
                of_log.section = Some(section);
            }
        }
    }
    out
}

/// The line at the end of a log that tells best why its process ended.
pub(crate) fn last_line(pods: &[CapturedPod], pod: &str, container: &str, previous: bool) -> Option<String> {
    let pod = pods.iter().find(|captured| captured.facts.name == pod)?;
    let log = pod.logs.iter().find(|log| log.container == container && log.previous == previous)?;
    let end = if log.excerpt.tail.is_empty() { &log.excerpt.head } else { &log.excerpt.tail };
    let end = String::from_utf8_lossy(&end[end.len().saturating_sub(LAST_LINES_MAX)..]);
    Some(telling_line(&end, true)).filter(|line| !line.is_empty())
}

/// What is missing of a Job's pods; `dropped_pods` of them are not among `pods`.
pub(crate) fn completeness(job: &JobSnapshot, pods: &[CapturedPod], dropped_pods: usize) -> Completeness {
    let mut lost = Vec::new();
    // Not by phase: the Job counts a pod as failed as soon as it is being deleted, and its process may then exit with 0.
    let counted = usize::try_from(job.succeeded_pods.saturating_add(job.failed_pods)).unwrap_or_default();
    let captured: HashSet<&str> = pods.iter().map(|pod| pod.facts.uid.as_str()).collect();
    let gone = counted.saturating_sub(captured.len() + dropped_pods);
    if gone > 0 {
        lost.push(format!("{gone} of {counted} pods were deleted before they could be captured"));
    }
    if dropped_pods > 0 {
        lost.push(format!("{dropped_pods} deleted pods were too many to be tracked"));
    }
    let (mut losses, mut truncations) = (LogsByReason::new(), LogsByReason::new());
    for pod in pods {
        for rest in pod.facts.containers.iter().filter(|container| pod_facts::is_rest(container)) {
            losses.entry((&rest.name, false, TOO_MANY)).or_default().push(&pod.facts);
        }
        for log in &pod.logs {
            let lost = log.lost.as_ref().filter(|lost| !lost.is_over_budget()).map(LogLoss::reason);
            for (reason, of) in [(lost, &mut losses), (log.truncation(), &mut truncations)] {
                if let Some(reason) = reason {
                    of.entry((&log.container, log.previous, reason)).or_default().push(&pod.facts);
                }
            }
        }
    }
    lost.extend(lines(losses));
    let truncated = lines(truncations);
    Completeness { complete: lost.is_empty() && truncated.is_empty(), lost, truncated }
}

/// Pods by container, whether it is the previous run, and the reason.
type LogsByReason<'a> = BTreeMap<(&'a str, bool, &'a str), Vec<&'a PodFacts>>;

fn lines(logs: LogsByReason<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for ((container, previous, why), pods) in logs {
        let run = if previous { " (previous)" } else { "" };
        if pods.len() < SHARED_LINE_PODS {
            lines.extend(pods.iter().map(|pod| format!("log of {}/{container}{run}: {why}", pod.name)));
        } else {
            lines.push(format!("logs of {container}{run} of {}: {why}", describe_pods(&pods)));
        }
    }
    lines
}

/// Describes many pods briefly: by ranges of their indexes, or by number.
fn describe_pods(pods: &[&PodFacts]) -> String {
    let indexes: Vec<u32> = pods.iter().filter_map(|pod| pod.index).collect();
    if indexes.len() == pods.len() {
        format!("{} pods with index {}", pods.len(), ranges(indexes))
    } else {
        format!("{} pods, one of them {}", pods.len(), pods[0].name)
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::result::pods::ContainerFacts;

    use super::*;
    use crate::harvest::{captured::CapturedLog, log_buffer::HeadTail};

    fn pod(name: &str, phase: &str, index: Option<u32>, lost: Option<&str>) -> CapturedPod {
        let (name, phase, uid) = (name.into(), phase.into(), format!("uid of {name}"));
        let facts = PodFacts { name, uid, phase, index, ..PodFacts::default() };
        let lost = lost.map(|reason| LogLoss::Final(reason.into()));
        let log = CapturedLog { container: "main".into(), lost, ..CapturedLog::default() };
        CapturedPod { facts, created: None, logs: vec![log] }
    }

    #[test]
    fn a_common_loss_of_many_pods_is_one_line() {
        let pods: Vec<_> = [7, 3, 4, 5, 0, 9]
            .map(|n| pod(&format!("a-{n}"), "Failed", Some(n), (n > 0).then_some("used up")))
            .into();
        let job = JobSnapshot { failed_pods: 6, ..JobSnapshot::default() };
        let found = completeness(&job, &pods, 0);
        assert_eq!(found.lost, ["logs of main of 5 pods with index 3-5,7,9: used up"]);
        let found = completeness(&job, &pods[..2], 0);
        assert_eq!(
            found.lost,
            [
                "4 of 6 pods were deleted before they could be captured",
                "log of a-7/main: used up",
                "log of a-3/main: used up"
            ]
        );
    }

    #[test]
    fn what_exceeds_the_budget_is_truncated_and_not_lost() {
        let mut long = pod("a", "Failed", None, None);
        let mut log = HeadTail::new(8);
        log.push(b"much more than that");
        long.logs[0].excerpt = log.finish();
        let mut left_out = pod("b", "Failed", None, None);
        left_out.logs[0].lost = Some(LogLoss::OverBudget);
        let found = completeness(&JobSnapshot::default(), &[long, left_out], 0);
        assert_eq!((found.complete, found.lost.len(), found.truncated.len()), (false, 0, 2), "{found:?}");
    }

    #[test]
    fn deleted_pods_are_counted() {
        let job = JobSnapshot { failed_pods: 3, succeeded_pods: 1, ..JobSnapshot::default() };
        let mut gone = pod("b", "Running", None, None);
        gone.facts.gone = true;
        let pods = [pod("a", "Failed", None, None), gone, pod("c", "Succeeded", None, None)];
        let found = completeness(&job, &pods, 0);
        assert_eq!(found.lost, ["1 of 4 pods were deleted before they could be captured"]);
        let found = completeness(&job, &pods, 1);
        assert_eq!(found.lost, ["1 deleted pods were too many to be tracked"]);
        assert!(!found.complete);
        assert!(completeness(&JobSnapshot::default(), &pods, 0).complete);
    }

    #[test]
    fn a_pod_whose_process_exits_with_0_on_sigterm_is_not_lost() {
        let job = JobSnapshot { failed_pods: 1, ..JobSnapshot::default() };
        let mut polite = pod("a", "Succeeded", None, None);
        polite.facts.gone = true;
        assert_eq!(
            completeness(&job, &[polite], 0),
            Completeness { complete: true, ..Completeness::default() }
        );
    }

    #[test]
    fn containers_that_are_left_out_are_missing() {
        let mut long = pod("a", "Failed", None, None);
        let rest = ContainerFacts { name: "37 more containers".into(), ..ContainerFacts::default() };
        long.facts.containers = vec![ContainerFacts { name: "main".into(), ..rest.clone() }, rest];
        let found = completeness(&JobSnapshot::default(), &[long], 0);
        let line = "log of a/37 more containers: of so many containers, only the first ones are kept";
        assert_eq!((found.complete, found.lost), (false, vec![line.to_owned()]));
    }

    #[test]
    fn ranges_are_compact() {
        for (indexes, expected) in [
            (vec![], ""),
            (vec![3], "3"),
            (vec![2, 1, 2], "1-2"),
            (vec![9, 1, 3, 4, u32::MAX], "1,3-4,9,4294967295"),
        ] {
            assert_eq!(ranges(indexes), expected);
        }
    }
}
