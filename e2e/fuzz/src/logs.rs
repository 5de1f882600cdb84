//! Logs of containers: the sink cuts and packs them into a result, and the kubectl plugin prints their sections.
//!
//! The bytes hold the logs of several runs, separated by 0x1e (record separator). The first byte of each chooses the run
//! by its lowest bits, so that digits do: 1 the second pod, 2 the second container, 4 the previous run, 8 a short buffer.

use std::collections::BTreeMap;

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot, Outcome},
    policy::results::Logs,
    result::{
        pods::{ContainerFacts, LogFacts, PodFacts},
        sections::heading,
    },
    testing::apiserver::Apiserver,
};
use job_handler_sink::harvest::{
    captured::{CapturedLog, CapturedPod, CapturedPods},
    log_buffer::{HeadTail, LogExcerpt},
    pack::pack,
};

use crate::{
    harness::{assert_printable, block_on},
    plugin,
};

const SEPARATOR: u8 = 0x1e;
/// A buffer that only short logs fit in, bytes.
const SHORT_BUFFER: usize = 16;
/// Logs arrive in pieces of this length, bytes.
const PIECE: usize = 7;
const JOB: &str = "build-1";

/// The log of one run of a container.
struct WrittenLog<'a> {
    pod: &'static str,
    container: &'static str,
    previous: bool,
    buffer: usize,
    content: &'a [u8],
}

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let written = written_logs(bytes);
    let excerpts: Vec<LogExcerpt> = written.iter().map(excerpt).collect();
    block_on(async {
        let apiserver = Apiserver::default();
        store(&apiserver, captured(&written, &excerpts));
        let all = plugin::run(&apiserver, &["logs", JOB, "--raw"]).await;
        assert_eq!(all.error, None);
        for (log, excerpt) in written.iter().zip(&excerpts) {
            let mut words = vec!["logs", JOB, "--raw", "-c", log.container, "--pod", log.pod];
            if log.previous {
                words.push("--previous");
            }
            let section = plugin::run(&apiserver, &words).await;
            assert_eq!(section.error, None);
            assert_section(log, excerpt, &section.out);
            let heading = heading(log.pod, log.container, log.previous);
            let with_heading = [heading.as_bytes(), &section.out].concat();
            assert!(all.out.windows(with_heading.len()).any(|part| part == with_heading), "{heading}");
        }
        let escaped = plugin::run(&apiserver, &["logs", JOB]).await;
        assert_eq!(escaped.error, None);
        assert_printable(&escaped.out);
    });
}

fn written_logs(bytes: &[u8]) -> Vec<WrittenLog<'_>> {
    let mut logs: Vec<WrittenLog<'_>> = Vec::new();
    for part in bytes.split(|byte| *byte == SEPARATOR) {
        let Some((choice, content)) = part.split_first() else { continue };
        let chosen = |bit: u8| choice & bit != 0;
        let log = WrittenLog {
            pod: if chosen(1) { "build-1-b" } else { "build-1-a" },
            container: if chosen(2) { "helper" } else { "main" },
            previous: chosen(4),
            // The first half of a buffer is for the beginning of a log.
            buffer: if chosen(8) { SHORT_BUFFER } else { content.len() * 2 + 2 },
            content,
        };
        let is_same = |other: &WrittenLog<'_>| {
            (other.pod, other.container, other.previous) == (log.pod, log.container, log.previous)
        };
        if !logs.iter().any(is_same) {
            logs.push(log);
        }
    }
    logs
}

fn excerpt(log: &WrittenLog<'_>) -> LogExcerpt {
    let mut buffer = HeadTail::new(log.buffer);
    log.content.chunks(PIECE).for_each(|piece| buffer.push(piece));
    buffer.finish()
}

fn captured(written: &[WrittenLog<'_>], excerpts: &[LogExcerpt]) -> CapturedPods {
    let mut pods: BTreeMap<&str, CapturedPod> = BTreeMap::new();
    for (log, excerpt) in written.iter().zip(excerpts) {
        let pod = pods.entry(log.pod).or_default();
        (pod.facts.name, pod.facts.uid) = (log.pod.to_owned(), log.pod.to_owned());
        let facts = LogFacts { previous: log.previous, length: excerpt.length, ..LogFacts::default() };
        let PodFacts { containers, .. } = &mut pod.facts;
        match containers.iter_mut().find(|container| container.name == log.container) {
            Some(container) => container.logs.push(facts),
            None => containers.push(ContainerFacts {
                name: log.container.to_owned(),
                logs: vec![facts],
                ..ContainerFacts::default()
            }),
        }
        pod.logs.push(CapturedLog {
            container: log.container.to_owned(),
            previous: log.previous,
            excerpt: excerpt.clone(),
            ..CapturedLog::default()
        });
    }
    CapturedPods { pods: pods.into_values().collect(), ..CapturedPods::default() }
}

/// Packs and stores the result as the sink does.
fn store(apiserver: &Apiserver, captured: CapturedPods) {
    let finished = Finished {
        outcome: Outcome::Failed,
        reason: "BackoffLimitExceeded".to_owned(),
        message: "Job has reached the specified backoff limit".to_owned(),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    let job = JobSnapshot {
        namespace: "ci".to_owned(),
        name: JOB.to_owned(),
        uid: "0123456789".to_owned(),
        finished: Some(finished),
        ..JobSnapshot::default()
    };
    let mut packed = pack(&job, None, captured, &Logs::default()).unwrap();
    let manifest = packed.map("build-1-results", None).unwrap();
    for object in packed.shards.iter().chain([&manifest]) {
        apiserver.put("configmaps", serde_json::to_value(object).unwrap());
    }
}

/// Checks that the section is the log, or its beginning and its end with a line about the gap between.
fn assert_section(log: &WrittenLog<'_>, excerpt: &LogExcerpt, section: &[u8]) {
    let LogExcerpt { head, tail, length, .. } = excerpt;
    assert_eq!(*length, log.content.len() as u64);
    let kept = head.len() + tail.len();
    if kept == log.content.len() {
        assert_eq!(section, log.content);
        return;
    }
    assert!(kept <= log.buffer && log.content.starts_with(head) && log.content.ends_with(tail));
    assert!(section.starts_with(head) && section.ends_with(tail));
    let gap = std::str::from_utf8(&section[head.len()..section.len() - tail.len()]).unwrap();
    let left_out = log.content.len() - kept;
    assert_eq!(gap.trim_start_matches('\n'), format!("[... {left_out} of {length} bytes left out ...]\n"));
}
