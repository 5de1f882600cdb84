//! Packs collected pods into a result: a ConfigMap, and shards if the logs are large. Pure. [`crate::result::storage`]
//! converts them to Secrets.
//!
//! Limits: 1 MiB of decoded data per ConfigMap (`pkg/apis/core/validation`, `MaxSecretSize`) and 1.5 MiB per etcd request.
//! Built-in objects are stored as protobuf, so JSON escaping counts only towards the request limit of 3 MiB
//! (`apiserver/pkg/server/config.go`, `MaxRequestBodyBytes`).

use std::collections::BTreeMap;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    policy::results::{Logs, LogsMode},
    result::{
        manifest::{JobFacts, Manifest, SCHEMA_VERSION},
        pending_events::PendingEvents,
        storage_kind::StorageKind,
    },
    text::truncate,
};

use crate::{
    harvest::{captured::CapturedPods, failure, log_sections, pod_status},
    model::pending_events,
    result::packed::{Packed, labels},
};

/// Longest `result` (termination message): the kubelet's limit.
const RESULT_MAX: usize = 4096;

/// Packs the pods of a finished Job; none if the Job has not finished.
pub fn pack(job: &JobSnapshot, group: Option<&str>, captured: CapturedPods, wanted: &Logs) -> Option<Packed> {
    let finished = job.finished.as_ref()?;
    let CapturedPods { mut pods, dropped_pods, objects } = captured;
    let facts: Vec<_> = pods.iter().map(|pod| pod.facts.clone()).collect();
    let mut data = BTreeMap::from([
        ("job-name".to_owned(), job.name.clone()),
        ("completion-time".to_owned(), finished.at.to_string()),
        ("status".to_owned(), finished.outcome.as_str().to_owned()),
    ]);
    if let Some(message) = pod_status::termination_message(&facts, finished.outcome) {
        let mut message = message.to_owned();
        truncate(&mut message, RESULT_MAX);
        data.insert("result".to_owned(), message);
    }
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        job: JobFacts {
            namespace: job.namespace.clone(),
            name: job.name.clone(),
            uid: job.uid.clone(),
            group: group.map(str::to_owned),
            labels: pending_events::labels_of(job),
            created: job.created,
            started: job.started,
            finished: finished.at,
            duration_seconds: job.started.map(|start| finished.at.duration_since(start).as_secs().max(0)),
            succeeded_pods: job.succeeded_pods,
            failed_pods: job.failed_pods,
        },
        outcome: finished.outcome,
        reason: finished.reason.clone(),
        message: {
            let mut message = finished.message.clone();
            truncate(&mut message, RESULT_MAX);
            message
        },
        cause: failure::overall_cause(job, &facts),
        failure: failure::classify(job, &facts),
        decisive: pod_status::decisive_line(job, &facts, &|pod, container, previous| {
            log_sections::last_line(&pods, pod, container, previous)
        }),
        completeness: log_sections::completeness(job, &pods, dropped_pods),
        public_line: None,
        pods: facts,
        pods_not_listed: dropped_pods,
        indexes_not_listed: String::new(),
        logs: None,
        objects,
        announcements_pending: vec![keys::REASON_PROCESSING.to_owned()],
        cloud_events_pending: PendingEvents::new(),
    };
    let labels = labels(job, group, finished.outcome);
    let mut packed = Packed {
        kind: StorageKind::default(),
        manifest,
        data,
        binary: BTreeMap::new(),
        shards: Vec::new(),
        requesting_policies: Vec::new(),
        policy_uids: Vec::new(),
        labels,
    };
    if wanted.mode == LogsMode::HeadAndTail {
        pods.sort_by(|a, b| (a.created, &a.facts.name).cmp(&(b.created, &b.facts.name)));
        let text = log_sections::concatenate(&pods, &mut packed.manifest.pods);
        // Logs can be large: this frees one of three copies.
        drop(pods);
        packed.put_logs(text);
    }
    Some(packed)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use jiff::Timestamp;
    use job_handler_shared::job::snapshot::Finished;
    use proptest::prelude::*;

    use super::*;
    use crate::harvest::{
        captured::{CapturedLog, CapturedPod, LogLoss},
        log_buffer::{HeadTail, LogExcerpt},
    };
    use job_handler_shared::job::snapshot::Outcome;
    use job_handler_shared::result::digest::sha256_hex;
    use job_handler_shared::result::manifest::Encoding;
    use job_handler_shared::result::pods::{ContainerFacts, LogFacts, PodFacts};
    use job_handler_shared::result::sections::LOGS;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn job() -> JobSnapshot {
        let finished = Finished {
            outcome: Outcome::Failed,
            reason: "BackoffLimitExceeded".into(),
            message: "m".into(),
            at: "2026-01-01T00:01:00Z".parse().unwrap(),
        };
        JobSnapshot {
            namespace: "ci".into(),
            name: "build-1".into(),
            uid: "0123456789-uid".into(),
            started: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            finished: Some(finished),
            failed_pods: 1,
            ..JobSnapshot::default()
        }
    }

    fn pods(content: &[u8]) -> CapturedPods {
        let mut log = HeadTail::new(content.len() * 2 + 2);
        log.push(content);
        let log = CapturedLog { container: "main".into(), excerpt: log.finish(), ..CapturedLog::default() };
        let facts = PodFacts { name: "build-1-x".into(), phase: "Failed".into(), ..PodFacts::default() };
        CapturedPods {
            pods: vec![CapturedPod { facts, created: None, logs: vec![log] }],
            ..CapturedPods::default()
        }
    }

    fn size(map: &ConfigMap) -> usize {
        map.data.iter().flatten().map(|(_, v)| v.len()).sum::<usize>()
            + map.binary_data.iter().flatten().map(|(_, v)| v.0.len()).sum::<usize>()
    }

    /// Reassembles the logs of a result, as a reader does.
    fn unpack(packed: &Packed) -> Vec<u8> {
        let place = packed.manifest.logs.as_ref().unwrap();
        let mut stored = Vec::new();
        for shard in &packed.shards {
            let piece = &shard.binary_data.as_ref().unwrap()[&place.key].0;
            stored.extend_from_slice(piece);
        }
        if packed.shards.is_empty() {
            stored = match packed.data.get(&place.key) {
                Some(text) => text.clone().into_bytes(),
                None => packed.binary[&place.key].0.clone(),
            };
        }
        if place.encoding == Encoding::Gzip {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut plain).unwrap();
            stored = plain;
        }
        assert_eq!((sha256_hex(&stored), stored.len()), (place.sha256.clone(), place.bytes));
        stored
    }

    #[test]
    fn a_small_log_stays_plain() {
        let mut packed = pack(&job(), Some("7.12"), pods(b"hello\n"), &Logs::default()).unwrap();
        let map = packed.map("build-1-results", None).unwrap();
        let data = map.data.unwrap();
        assert_eq!(data["logs"], "=== Pod: build-1-x / Container: main ===\nhello\n");
        assert_eq!((data["status"].as_str(), data["job-name"].as_str()), ("failed", "build-1"));
        assert_eq!(data["completion-time"], "2026-01-01T00:01:00Z");
        let labels = map.metadata.labels.unwrap();
        assert_eq!(
            (labels["job-name"].as_str(), labels["job-handler/created"].as_str()),
            ("build-1", "true")
        );
        assert_eq!(labels["job-handler/group"], "7.12");
        assert!(map.metadata.owner_references.is_none());
        let manifest = Manifest::parse("ci", data["result.json"].as_bytes()).unwrap();
        assert_eq!(manifest.job.duration_seconds, Some(60));
        assert!(manifest.completeness.complete);
        assert!(
            manifest
                .note(StorageKind::ConfigMap, "build-1-results", 1024)
                .ends_with("Result: ConfigMap ci/build-1-results")
        );
    }

    #[test]
    fn an_event_note_has_one_full_stop_before_the_result() {
        let mut packed = pack(&job(), None, CapturedPods::default(), &Logs::default()).unwrap();
        for decisive in ["The node was low on memory.", "The node was low on memory"] {
            packed.manifest.decisive = decisive.to_owned();
            let note = packed.manifest.note(StorageKind::ConfigMap, "build-1-results", 1024);
            assert!(note.contains(": The node was low on memory. Result: ConfigMap"), "{note}");
        }
    }

    #[test]
    fn each_log_records_its_section() {
        let mut older = pods(b"without a line end").pods.remove(0);
        (older.facts.name, older.facts.uid) = ("build-1-a".into(), "a".into());
        older.facts.containers = vec![ContainerFacts { name: "main".into(), ..ContainerFacts::default() }];
        older.facts.containers[0].logs = vec![LogFacts::default()];
        let mut newer = older.clone();
        (newer.facts.name, newer.facts.uid) = ("build-1-b".into(), "b".into());
        newer.logs[0].excerpt =
            LogExcerpt { head: b"=== Pod: x / Container: y ===\n".into(), ..LogExcerpt::default() };
        newer.logs[0].lost = Some(LogLoss::Final("why".into()));
        (older.created, newer.created) = (Some(Timestamp::UNIX_EPOCH), Some(Timestamp::MAX));
        // Facts and text are in different orders.
        let packed = pack(
            &job(),
            None,
            CapturedPods { pods: vec![newer, older], ..CapturedPods::default() },
            &Logs::default(),
        )
        .unwrap();
        let logs = packed.data[LOGS].as_bytes();
        let part = |n: usize| {
            let section = packed.manifest.pods[n].containers[0].logs[0].section.unwrap();
            let (from, bytes) = (section.offset as usize, section.bytes as usize);
            std::str::from_utf8(&logs[from..from + bytes]).unwrap()
        };
        assert_eq!(part(0), "=== Pod: x / Container: y ===\n[lost: why]\n");
        assert_eq!(part(1), "without a line end");
    }

    #[test]
    fn missing_pods_are_reported() {
        let packed = pack(&job(), None, CapturedPods::default(), &Logs::default()).unwrap();
        assert!(!packed.manifest.completeness.complete);
        assert!(packed.manifest.completeness.lost[0].contains("1 of 1 pods were deleted"));
    }

    #[test]
    fn a_result_of_a_thousand_pods_fits() {
        let pods: Vec<_> = (0..1000)
            .map(|n| {
                let mut pod = pods(b"x").pods.remove(0);
                pod.facts.name = format!("build-1-{n}");
                pod.facts.message = Some("m".repeat(4096));
                pod.facts.containers = vec![Default::default(); 3];
                pod.facts.containers[0].logs = vec![LogFacts::default(); 2];
                pod
            })
            .collect();
        let captured = CapturedPods { pods, ..CapturedPods::default() };
        let mut packed = pack(&job(), None, captured, &Logs::default()).unwrap();
        let map = packed.map("build-1-results", None).unwrap();
        assert!(size(&map) <= 1 << 20, "{}", size(&map));
        assert_eq!(packed.manifest.pods.len() + packed.manifest.pods_not_listed, 1000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// For any logs, every object is within the limits, and the logs come back unchanged.
        #[test]
        fn every_object_fits_and_logs_come_back_unchanged(seed: u64, length in 0usize..3_000_000, alphabet in 1u8..=255) {
            let mut state = seed | 1;
            let content: Vec<u8> = (0..length).map(|_| {
                state ^= state << 13; state ^= state >> 7; state ^= state << 17;
                (state % u64::from(alphabet)) as u8
            }).collect();
            let mut packed = pack(&job(), None, pods(&content), &Logs::default()).unwrap();
            let logs = unpack(&packed);
            let head = b"=== Pod: build-1-x / Container: main ===\n";
            prop_assert_eq!(&logs[head.len()..], &content[..]);
            let map = packed.map("build-1-results", None).unwrap();
            for map in packed.shards.iter().chain([&map]) {
                prop_assert!(size(map) <= 1 << 20);
                prop_assert!(serde_json::to_vec(map).unwrap().len() < 3 << 20);
            }
        }
    }
}
