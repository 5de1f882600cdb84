//! A result that is ready to be written: ConfigMaps of manifest and shards.

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, write::GzEncoder};
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys, names,
    result::{
        digest::sha256_hex,
        manifest::{Encoding, KEY, LogPlace, Manifest, Shard},
        metadata::{self, OUTBOX, PENDING, SHARD},
        sections::{LOGS, LOGS_GZ},
        storage_kind::StorageKind,
    },
};
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::core::ObjectMeta;

/// Most data in one ConfigMap, bytes; the rest of the 1 MiB is reserved for keys and metadata.
pub(crate) const DATA_MAX: usize = 1_000_000;

/// Most bytes of a ConfigMap as JSON: escaping can multiply the size of logs.
pub(crate) const JSON_MAX: usize = 2 << 20;

/// A result ready to be written: shards first, the manifest last.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Kind of the objects that store it.
    pub kind: StorageKind,
    /// The manifest.
    pub manifest: Manifest,
    /// Data besides the manifest.
    pub data: BTreeMap<String, String>,
    /// Binary data of the manifest's ConfigMap.
    pub binary: BTreeMap<String, ByteString>,
    /// Shards, in order.
    pub shards: Vec<ConfigMap>,
    /// The policies that requested it, as [`metadata::requesting_policy`] formats them.
    pub(crate) requesting_policies: Vec<String>,
    /// Uids of the policies that requested it.
    pub(crate) policy_uids: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Packed {
    pub(crate) fn put_logs(&mut self, text: Vec<u8>) {
        let mut place = LogPlace {
            key: LOGS.to_owned(),
            encoding: Encoding::Plain,
            bytes: text.len(),
            sha256: sha256_hex(&text),
            shards: Vec::new(),
        };
        // The manifest is in the same ConfigMap, and the list of shards may enlarge it.
        let room = DATA_MAX
            - job_handler_shared::result::manifest::MAX_BYTES
            - self.data.values().map(String::len).sum::<usize>();
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
                place.shards.push(Shard {
                    name: name.clone(),
                    bytes: piece.len(),
                    sha256: sha256_hex(piece),
                });
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

    /// Removes the logs after a rejected write; outcome and states remain.
    pub(crate) fn drop_logs(&mut self, why: &str) {
        self.data.remove(LOGS);
        self.binary.clear();
        self.shards.clear();
        self.manifest.logs = None;
        let containers = self.manifest.pods.iter_mut().flat_map(|pod| &mut pod.containers);
        containers.flat_map(|container| &mut container.logs).for_each(|log| log.section = None);
        self.manifest.completeness.complete = false;
        self.manifest.completeness.lost.push(format!("logs: {why}"));
    }

    /// Records that everything containers wrote is missing, because the Secret for it cannot be written.
    pub(crate) fn withhold(&mut self, why: &str) {
        self.manifest.completeness.complete = false;
        let lost = format!("logs and termination messages: they were to be kept in a Secret, and {why}");
        self.manifest.completeness.lost.push(lost);
    }

    /// The ConfigMap with the manifest, to create, or to replace the one with this `version`.
    ///
    /// # Errors
    /// If the manifest cannot be serialized, which its types rule out.
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
        let facts = metadata::RetentionFacts {
            created: self.manifest.job.created,
            finished: self.manifest.job.finished,
            bytes: bytes as u64,
            shards: self.shards.len(),
            objects: Some(self.manifest.objects.as_ref().map_or(0, |objects| objects.count)),
            policies: self.requesting_policies.clone(),
        };
        let mut annotations = BTreeMap::from([
            (metadata::SIZE.to_owned(), bytes.to_string()),
            (metadata::POLICIES.to_owned(), self.policy_uids.join(",")),
            (metadata::RETENTION.to_owned(), serde_json::to_string(&facts)?),
        ]);
        let lost = self.manifest.completeness.lost.len();
        if lost > 0 {
            annotations.insert(metadata::LOST.to_owned(), lost.to_string());
        }
        if let Some(names) = metadata::format_outbox(&self.manifest.cloud_events_pending) {
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

pub(crate) fn labels(job: &JobSnapshot, group: Option<&str>, outcome: Outcome) -> BTreeMap<String, String> {
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

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let written = encoder.write_all(bytes);
    debug_assert!(written.is_ok());
    encoder.finish().unwrap_or_default()
}

/// Length of a text as a JSON string.
pub(crate) fn json_length(text: &str) -> usize {
    text.bytes()
        .map(|b| match b {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
            0..=0x1f => 6,
            _ => 1,
        })
        .sum()
}
