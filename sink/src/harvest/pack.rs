//! Packs what was captured into ConfigMaps: the result, and shards where the logs are large. Pure. Where they are to be
//! Secrets, [`crate::result::storage`] makes Secrets of them.
//!
//! Limits (`pkg/apis/core/validation`, `MaxSecretSize`): 1 MiB of decoded data per ConfigMap; etcd takes 1.5 MiB per
//! request, in which built-in objects are stored as protobuf, so that JSON's escaping weighs only on the wire (3 MiB,
//! `apiserver/pkg/server/config.go`, `MaxRequestBodyBytes`).

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, write::GzEncoder};
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys, names,
    policy::results::{Logs, LogsMode},
};
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::core::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::{
    cloudevents::{
        event,
        outbox::{self, OUTBOX},
    },
    harvest::{collector::Captured, failure, log_sections, pod_status},
    model::manifest::{
        Encoding, JobFacts, KEY, LogPlace, Manifest, PENDING, SCHEMA_VERSION, SHARD, Shard, truncate,
    },
    result::storage::Kind,
    retention::plan,
    status::summary,
};

/// Most data we put into one ConfigMap, bytes; the rest of the 1 MiB is air for what we did not count.
pub const DATA_MAX: usize = 1_000_000;
/// Most bytes a ConfigMap of ours takes as JSON.
const JSON_MAX: usize = 2 << 20;
/// Key of plain logs, in data, or in binaryData where they are not UTF-8.
pub const LOGS: &str = "logs";
/// Key of gzipped logs in binaryData, whole or a piece of them.
pub const LOGS_GZ: &str = "logs.gz";
/// Longest `result` (termination message); the kubelet's own limit.
const RESULT_MAX: usize = 4096;

/// A result ready to be written: shards first, the manifest last.
#[derive(Clone, Debug)]
pub struct Packed {
    /// What it is to be held in.
    pub kind: Kind,
    /// The machine-readable part.
    pub manifest: Manifest,
    /// Data besides the manifest.
    pub data: BTreeMap<String, String>,
    /// Binary data of the manifest's ConfigMap.
    pub binary: BTreeMap<String, ByteString>,
    /// Shards, in order.
    pub shards: Vec<ConfigMap>,
    /// The policies that asked for it, as [`plan::asker`] writes them.
    pub askers: Vec<String>,
    /// Uids of the policies that asked for it.
    pub policies: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// Packs what was captured of a finished Job; nothing where the Job has not finished.
pub fn pack(job: &JobSnapshot, group: Option<&str>, captured: Captured, wanted: &Logs) -> Option<Packed> {
    let finished = job.finished.as_ref()?;
    let Captured { mut pods, forgotten, objects } = captured;
    let facts: Vec<_> = pods.iter().map(|pod| pod.facts.clone()).collect();
    let mut data = BTreeMap::from([
        ("job-name".to_owned(), job.name.clone()),
        ("completion-time".to_owned(), finished.at.to_string()),
        ("status".to_owned(), finished.outcome.as_str().to_owned()),
    ]);
    if let Some(message) = pod_status::main_message(&facts, finished.outcome) {
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
            labels: event::labels_of(job),
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
        cause: failure::cause(job, &facts),
        failure: failure::failure(job, &facts),
        decisive: pod_status::decisive(job, &facts, &|pod, container, previous| {
            log_sections::last_line(&pods, pod, container, previous)
        }),
        completeness: log_sections::completeness(job, &pods, forgotten),
        told: None,
        pods: facts,
        pods_not_listed: forgotten,
        indexes_not_listed: String::new(),
        logs: None,
        objects,
        announcements_pending: vec![keys::REASON_PROCESSING.to_owned()],
        cloud_events_pending: event::Pending::new(),
    };
    let labels = labels(job, group, finished.outcome);
    let mut packed = Packed {
        kind: Kind::default(),
        manifest,
        data,
        binary: BTreeMap::new(),
        shards: Vec::new(),
        askers: Vec::new(),
        policies: Vec::new(),
        labels,
    };
    if wanted.mode == LogsMode::HeadAndTail {
        pods.sort_by(|a, b| (a.created, &a.facts.name).cmp(&(b.created, &b.facts.name)));
        let text = log_sections::text(&pods, &mut packed.manifest.pods);
        // Logs can be large: not three copies of them at a time.
        drop(pods);
        packed.put_logs(text);
    }
    Some(packed)
}

impl Packed {
    fn put_logs(&mut self, text: Vec<u8>) {
        let mut place = LogPlace {
            key: LOGS.to_owned(),
            encoding: Encoding::Plain,
            bytes: text.len(),
            sha256: hex(&text),
            shards: Vec::new(),
        };
        // The manifest is written into the same map, and may have grown by the list of shards.
        let room =
            DATA_MAX - crate::model::manifest::MAX_BYTES - self.data.values().map(String::len).sum::<usize>();
        if text.len() <= room {
            match String::from_utf8(text) {
                Ok(text) if json_length(&text) <= JSON_MAX => {
                    self.data.insert(LOGS.to_owned(), text);
                    self.manifest.logs = Some(place);
                }
                Ok(text) => self.put_gzip(gzip(text.as_bytes()), place, room),
                Err(error) => {
                    self.binary.insert(LOGS.to_owned(), ByteString(error.into_bytes()));
                    self.manifest.logs = Some(place);
                }
            }
        } else {
            place.encoding = Encoding::Gzip;
            self.put_gzip(gzip(&text), place, room);
        }
    }

    fn put_gzip(&mut self, zipped: Vec<u8>, mut place: LogPlace, room: usize) {
        place.encoding = Encoding::Gzip;
        place.key = LOGS_GZ.to_owned();
        if zipped.len() <= room {
            self.binary.insert(LOGS_GZ.to_owned(), ByteString(zipped));
        } else {
            let job = &self.manifest.job;
            for (n, piece) in zipped.chunks(DATA_MAX).enumerate() {
                let name = names::shard_name(&job.name, &job.uid, n);
                place.shards.push(Shard { name: name.clone(), bytes: piece.len(), sha256: hex(piece) });
                let mut labels = self.labels.clone();
                labels.remove(keys::CREATED);
                labels.remove(keys::STATUS);
                labels.insert(SHARD.to_owned(), n.to_string());
                self.shards.push(ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(name),
                        namespace: Some(job.namespace.clone()),
                        labels: Some(labels),
                        ..ObjectMeta::default()
                    },
                    binary_data: Some([(LOGS_GZ.to_owned(), ByteString(piece.to_vec()))].into()),
                    ..ConfigMap::default()
                });
            }
        }
        self.manifest.logs = Some(place);
    }

    /// Takes the logs out, for a write that was refused: the outcome and the states stay.
    pub fn drop_logs(&mut self, why: &str) {
        self.data.remove(LOGS);
        self.binary.clear();
        self.shards.clear();
        self.manifest.logs = None;
        let containers = self.manifest.pods.iter_mut().flat_map(|pod| &mut pod.containers);
        containers.flat_map(|container| &mut container.logs).for_each(|log| log.section = None);
        self.manifest.completeness.complete = false;
        self.manifest.completeness.lost.push(format!("logs: {why}"));
    }

    /// Says that what containers wrote was not kept, because the Secret in which it was to be cannot be had.
    pub fn withhold(&mut self, why: &str) {
        self.manifest.completeness.complete = false;
        let lost = format!("logs and termination messages: they were to be kept in a Secret, and {why}");
        self.manifest.completeness.lost.push(lost);
    }

    /// The manifest's ConfigMap under `name`; replaces the one with `version` where that is given.
    ///
    /// # Errors
    /// Where the manifest is no JSON, which its types rule out.
    pub fn map(&mut self, name: &str, version: Option<&str>) -> serde_json::Result<ConfigMap> {
        let mut labels = self.labels.clone();
        if !self.manifest.announcements_pending.is_empty() {
            labels.insert(PENDING.to_owned(), "pending".to_owned());
        }
        let mut data = self.data.clone();
        data.insert(KEY.to_owned(), self.manifest.to_json()?);
        let bytes = data.values().map(String::len).sum::<usize>()
            + self.binary.values().map(|value| value.0.len()).sum::<usize>()
            + self.manifest.logs.iter().flat_map(|logs| &logs.shards).map(|shard| shard.bytes).sum::<usize>();
        let facts = plan::Facts {
            created: self.manifest.job.created,
            finished: self.manifest.job.finished,
            bytes: bytes as u64,
            shards: self.shards.len(),
            objects: Some(self.manifest.objects.as_ref().map_or(0, |objects| objects.count)),
            policies: self.askers.clone(),
        };
        let mut annotations = BTreeMap::from([
            (summary::SIZE.to_owned(), bytes.to_string()),
            (summary::POLICIES.to_owned(), self.policies.join(",")),
            (plan::ANNOTATION.to_owned(), serde_json::to_string(&facts)?),
        ]);
        let lost = self.manifest.completeness.lost.len();
        if lost > 0 {
            annotations.insert(summary::LOST.to_owned(), lost.to_string());
        }
        if let Some(names) = outbox::annotation(&self.manifest.cloud_events_pending) {
            annotations.insert(OUTBOX.to_owned(), names);
        }
        Ok(ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.manifest.job.namespace.clone()),
                labels: Some(labels),
                annotations: Some(annotations),
                resource_version: version.map(str::to_owned),
                ..ObjectMeta::default()
            },
            data: Some(data),
            binary_data: Some(self.binary.clone()).filter(|binary| !binary.is_empty()),
            ..ConfigMap::default()
        })
    }
}

fn labels(job: &JobSnapshot, group: Option<&str>, outcome: Outcome) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (keys::CREATED.to_owned(), "true".to_owned()),
        (keys::JOB_NAME.to_owned(), names::label_value(&job.name)),
        (keys::JOB_UID.to_owned(), job.uid.clone()),
        (keys::STATUS.to_owned(), outcome.as_str().to_owned()),
    ]);
    if let Some(group) = group {
        labels.insert(keys::GROUP.to_owned(), names::label_value(group));
    }
    labels
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing into memory does not fail.
    let written = encoder.write_all(bytes);
    debug_assert!(written.is_ok());
    encoder.finish().unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Length of a text as a JSON string.
fn json_length(text: &str) -> usize {
    text.bytes()
        .map(|b| match b {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
            0..=0x1f => 6,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use jiff::Timestamp;
    use job_handler_shared::job::snapshot::Finished;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        harvest::{
            collector::{CapturedLog, CapturedPod},
            log_buffer::{HeadTail, Kept},
        },
        model::manifest::{ContainerFacts, LogFacts, PodFacts},
    };

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

    fn pods(content: &[u8]) -> Captured {
        let mut log = HeadTail::new(content.len() * 2 + 2);
        log.push(content);
        let log = CapturedLog { container: "main".into(), kept: log.finish(), ..CapturedLog::default() };
        let facts = PodFacts { name: "build-1-x".into(), phase: "Failed".into(), ..PodFacts::default() };
        Captured { pods: vec![CapturedPod { facts, created: None, logs: vec![log] }], ..Captured::default() }
    }

    fn size(map: &ConfigMap) -> usize {
        map.data.iter().flatten().map(|(_, v)| v.len()).sum::<usize>()
            + map.binary_data.iter().flatten().map(|(_, v)| v.0.len()).sum::<usize>()
    }

    /// Puts a result's logs together again, as a reader does.
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
        assert_eq!((hex(&stored), stored.len()), (place.sha256.clone(), place.bytes));
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
        let manifest: Manifest = serde_json::from_str(&data["result.json"]).unwrap();
        assert_eq!(manifest.job.duration_seconds, Some(60));
        assert!(manifest.completeness.complete);
        assert!(
            manifest
                .note(Kind::ConfigMap, "build-1-results", 1024)
                .ends_with("Result: ConfigMap ci/build-1-results")
        );
    }

    #[test]
    fn a_note_has_one_full_stop_before_the_result() {
        let mut packed = pack(&job(), None, Captured::default(), &Logs::default()).unwrap();
        for decisive in ["The node was low on memory.", "The node was low on memory"] {
            packed.manifest.decisive = decisive.to_owned();
            let note = packed.manifest.note(Kind::ConfigMap, "build-1-results", 1024);
            assert!(note.contains(": The node was low on memory. Result: ConfigMap"), "{note}");
        }
    }

    #[test]
    fn each_log_says_where_it_is() {
        let mut older = pods(b"without a line end").pods.remove(0);
        (older.facts.name, older.facts.uid) = ("build-1-a".into(), "a".into());
        older.facts.containers = vec![ContainerFacts { name: "main".into(), ..ContainerFacts::default() }];
        older.facts.containers[0].logs = vec![LogFacts::default()];
        let mut newer = older.clone();
        (newer.facts.name, newer.facts.uid) = ("build-1-b".into(), "b".into());
        newer.logs[0].kept = Kept { head: b"=== Pod: x / Container: y ===\n".into(), ..Kept::default() };
        newer.logs[0].lost = Some("why".into());
        (older.created, newer.created) = (Some(Timestamp::UNIX_EPOCH), Some(Timestamp::MAX));
        // The order of facts is not that of the text.
        let packed = pack(
            &job(),
            None,
            Captured { pods: vec![newer, older], ..Captured::default() },
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
    fn what_is_missing_is_told() {
        let packed = pack(&job(), None, Captured::default(), &Logs::default()).unwrap();
        assert!(!packed.manifest.completeness.complete);
        assert!(packed.manifest.completeness.lost[0].contains("1 of 1 failed pods were gone"));
    }

    #[test]
    fn a_thousand_pods_fit() {
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
        let captured = Captured { pods, ..Captured::default() };
        let mut packed = pack(&job(), None, captured, &Logs::default()).unwrap();
        let map = packed.map("build-1-results", None).unwrap();
        assert!(size(&map) <= 1 << 20, "{}", size(&map));
        assert_eq!(packed.manifest.pods.len() + packed.manifest.pods_not_listed, 1000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever the logs are, every map is within the limits and the logs come back byte by byte.
        #[test]
        fn every_map_fits_and_nothing_is_changed(seed: u64, length in 0usize..3_000_000, alphabet in 1u8..=255) {
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
