//! The logs of a Job's pods as one text, and what is missing in it. Pure.

use std::collections::HashMap;

use job_handler_shared::job::JobSnapshot;

use crate::{
    capture::CapturedPod,
    manifest::{Completeness, PodFacts, Section},
};

/// Longest last line of a log that is looked at, bytes.
const LAST_LINE_MAX: usize = 400;

/// The heading of a section.
pub fn heading(pod: &str, container: &str, previous: bool) -> String {
    let run = if previous { " (previous)" } else { "" };
    format!("=== Pod: {pod} / Container: {container}{run} ===\n")
}

/// The logs as people read them: one section per container and run, oldest pod first. Notes in `facts`, which are of the
/// same pods in whatever order, where each log is.
pub fn text(pods: &[CapturedPod], facts: &mut [PodFacts]) -> Vec<u8> {
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
            log.kept.write_to(&mut out);
            if let Some(lost) = &log.lost {
                if out.last().is_some_and(|b| *b != b'\n') {
                    out.push(b'\n');
                }
                out.extend_from_slice(format!("[lost: {lost}]\n").as_bytes());
            }
            let section = Section { offset: offset as u64, bytes: (out.len() - offset) as u64 };
            let containers = of_pod.get_mut(&pod.facts.uid).map(|facts| facts.containers.iter_mut());
            let mut containers = containers.into_iter().flatten().filter(|c| c.name == log.container);
            let told = containers.find_map(|c| c.logs.iter_mut().find(|told| told.previous == log.previous));
            if let Some(told) = told {
                told.section = Some(section);
            }
        }
    }
    out
}

/// The last line that is not empty of what was kept of a log.
pub fn last_line(pods: &[CapturedPod], pod: &str, container: &str, previous: bool) -> Option<String> {
    let pod = pods.iter().find(|captured| captured.facts.name == pod)?;
    let log = pod.logs.iter().find(|log| log.container == container && log.previous == previous)?;
    let end = if log.kept.tail.is_empty() { &log.kept.head } else { &log.kept.tail };
    let end = String::from_utf8_lossy(&end[end.len().saturating_sub(LAST_LINE_MAX)..]);
    // What a terminal would act on has no place in an Event.
    let line = end.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).collect())
}

/// What could not be had of a Job's pods.
pub fn completeness(job: &JobSnapshot, pods: &[CapturedPod]) -> Completeness {
    let mut lost = Vec::new();
    let ended = |phase: &str| pods.iter().filter(|pod| pod.facts.phase == phase).count();
    for (word, counted, found) in
        [("succeeded", job.succeeded_pods, ended("Succeeded")), ("failed", job.failed_pods, ended("Failed"))]
    {
        let counted = usize::try_from(counted).unwrap_or_default();
        if counted > found {
            let gone = counted - found;
            lost.push(format!("{gone} of {counted} {word} pods were gone before they could be captured"));
        }
    }
    for pod in pods {
        for log in &pod.logs {
            if let Some(why) = &log.lost {
                let run = if log.previous { " (previous)" } else { "" };
                lost.push(format!("log of {}/{}{run}: {why}", pod.facts.name, log.container));
            }
        }
    }
    let cut = pods.iter().flat_map(|pod| &pod.logs).any(|log| log.kept.left_out() > 0);
    Completeness { complete: lost.is_empty() && !cut, lost }
}
