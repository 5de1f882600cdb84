//! Reads the JSON of a Job in one pass, and of its labels only what is asked for.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        snapshot::{Finished, JobSnapshot, Outcome, Owner},
        trim::SpareLabels,
    },
    keys,
    policy::{
        label_keys::{LabelKeys, NamespaceLabelKeys},
        reference::Labels,
    },
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::job_view::{JobView, TemplateView, containers::RawPodSpec, first_of::FirstOf};

/// Most JSON of `metadata.labels` that is read in a review, bytes, and of the template's labels. Kubernetes has no bound of
/// its own, but bounds all annotations together to this (`TotalAnnotationSizeLimitB`). In memory, labels take ten times the
/// space.
const MAX_LABELS: usize = 256 << 10;
/// Longest value of one of our annotations, bytes. The webhook's own are shorter: a longer one is none of ours.
const MAX_ANNOTATION: usize = 64 << 10;
/// Most conditions that are read. The Job controller writes five.
const MAX_CONDITIONS: usize = 64;

/// Reads a Job without its template, and of its labels only those with the keys of its namespace.
///
/// # Errors
/// If the JSON is no Job.
pub(crate) fn read_trimmed(json: &[u8], keys: &NamespaceLabelKeys) -> serde_json::Result<JobSnapshot> {
    serde_json::from_slice::<RawJob<IgnoredAny>>(json)?.into_trimmed(keys)
}

/// `T` is what is read of the template.
#[derive(Deserialize)]
pub(super) struct RawJob<T> {
    metadata: Option<RawMetadata>,
    spec: Option<RawSpec<T>>,
    status: Option<RawStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMetadata {
    namespace: Option<String>,
    name: Option<String>,
    generate_name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    /// Stays text until it is known which labels are needed.
    labels: Option<Box<RawValue>>,
    annotations: Option<OwnAnnotations>,
    owner_references: Option<ControllingOwner>,
    finalizers: Option<OrphanFinalizer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawOwnerReference {
    #[serde(default)]
    controller: Option<bool>,
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpec<T> {
    suspend: Option<bool>,
    managed_by: Option<String>,
    ttl_seconds_after_finished: Option<i32>,
    active_deadline_seconds: Option<i64>,
    backoff_limit: Option<i32>,
    backoff_limit_per_index: Option<i32>,
    template: Option<T>,
}

#[derive(Deserialize)]
pub(super) struct RawTemplate {
    metadata: Option<RawTemplateMetadata>,
    spec: Option<RawPodSpec>,
}

#[derive(Deserialize)]
struct RawTemplateMetadata {
    labels: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    start_time: Option<Timestamp>,
    active: Option<i32>,
    terminating: Option<i32>,
    succeeded: Option<i32>,
    failed: Option<i32>,
    conditions: Option<FirstOf<RawCondition, MAX_CONDITIONS>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    last_transition_time: Option<Timestamp>,
}

/// Those of [`keys::ON_JOBS`]. All others are skipped: `kubectl apply` stores a full manifest in one.
#[derive(Default)]
struct OwnAnnotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for OwnAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OwnKeys;
        impl<'de> Visitor<'de> for OwnKeys {
            type Value = OwnAnnotations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OwnAnnotations, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if keys::ON_JOBS.contains(&key.as_str()) {
                        let value: String = map.next_value()?;
                        if value.len() <= MAX_ANNOTATION {
                            ours.insert(key, value);
                        }
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(OwnAnnotations(ours))
            }
        }
        deserializer.deserialize_map(OwnKeys)
    }
}

/// The controlling one of a Job's owners; the others are skipped, however many there are.
#[derive(Default)]
struct ControllingOwner(Option<Owner>);

impl<'de> Deserialize<'de> for ControllingOwner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Owners;
        impl<'de> Visitor<'de> for Owners {
            type Value = ControllingOwner;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of owners")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut owners: A) -> Result<ControllingOwner, A::Error> {
                let mut controller: Option<RawOwnerReference> = None;
                while let Some(owner) = owners.next_element::<RawOwnerReference>()? {
                    if controller.is_none() && owner.controller == Some(true) {
                        controller = Some(owner);
                    }
                }
                let owner = controller.and_then(|o| Owner::new(&o.api_version, &o.kind, &o.name, &o.uid));
                Ok(ControllingOwner(owner))
            }
        }
        deserializer.deserialize_seq(Owners)
    }
}

/// Whether finalizer `orphan` is among a Job's finalizers; the others are skipped, however many there are.
#[derive(Default)]
struct OrphanFinalizer(bool);

impl<'de> Deserialize<'de> for OrphanFinalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Finalizers;
        impl<'de> Visitor<'de> for Finalizers {
            type Value = OrphanFinalizer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of finalizers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut finalizers: A) -> Result<OrphanFinalizer, A::Error> {
                let mut orphans = false;
                while let Some(finalizer) = finalizers.next_element::<String>()? {
                    orphans |= finalizer == keys::ORPHAN_FINALIZER;
                }
                Ok(OrphanFinalizer(orphans))
            }
        }
        deserializer.deserialize_seq(Finalizers)
    }
}

/// Reads those labels of a map whose key is one of these; all without keys.
struct LabelsOf<'a>(Option<&'a LabelKeys>);

/// The labels that were asked for, and whether there were others.
#[derive(Default)]
struct FoundLabels {
    labels: Labels,
    others: bool,
}

impl<'de> DeserializeSeed<'de> for LabelsOf<'_> {
    type Value = FoundLabels;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<FoundLabels, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LabelsOf<'_> {
    type Value = FoundLabels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FoundLabels, A::Error> {
        let mut found = FoundLabels::default();
        while let Some(key) = map.next_key::<String>()? {
            if self.0.is_none_or(|keys| keys.contains(&key)) {
                found.labels.insert(key, map.next_value()?);
            } else {
                found.others = true;
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

fn labels_of(raw: Option<&RawValue>, keys: Option<&LabelKeys>) -> serde_json::Result<FoundLabels> {
    let Some(raw) = raw else { return Ok(FoundLabels::default()) };
    LabelsOf(keys).deserialize(&mut serde_json::Deserializer::from_str(raw.get()))
}

/// All labels, for a review.
fn all_labels(raw: Option<&RawValue>) -> serde_json::Result<Labels> {
    if raw.is_some_and(|raw| raw.get().len() > MAX_LABELS) {
        return Err(serde_json::Error::custom(format!("its labels take more than {} KiB", MAX_LABELS >> 10)));
    }
    Ok(labels_of(raw, None)?.labels)
}

impl<T> RawJob<T> {
    fn into_trimmed(mut self, keys: &NamespaceLabelKeys) -> serde_json::Result<JobSnapshot> {
        let namespace = self.metadata.as_ref().and_then(|metadata| metadata.namespace.as_deref());
        let keys: &Arc<LabelKeys> = keys.of(namespace.unwrap_or_default());
        let labels = self.metadata.as_mut().and_then(|metadata| metadata.labels.take());
        let FoundLabels { labels, others } = labels_of(labels.as_deref(), Some(keys))?;
        let mut job = self.into_snapshot(labels);
        job.kept_labels = others.then(|| keys.clone());
        job.trim(keys, SpareLabels::NONE);
        Ok(job)
    }

    fn into_snapshot(self, labels: Labels) -> JobSnapshot {
        let (meta, status) = (self.metadata.unwrap_or_default(), self.status.unwrap_or_default());
        let spec = self.spec.as_ref();
        let conditions = status.conditions.unwrap_or_default().0;
        let finishing =
            ["SuccessCriteriaMet", "FailureTarget"].iter().any(|kind| is_true(&conditions, kind).is_some());
        JobSnapshot {
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.unwrap_or_default(),
            deleting_since: meta.deletion_timestamp,
            labels,
            kept_labels: None,
            has_cut_labels: false,
            annotations: meta.annotations.unwrap_or_default().0,
            owner: meta.owner_references.unwrap_or_default().0,
            suspended: spec.and_then(|spec| spec.suspend).unwrap_or_default(),
            suspension_seen: is_true(&conditions, "Suspended").is_some(),
            managed_by: spec
                .and_then(|spec| spec.managed_by.clone())
                .filter(|manager| manager != keys::JOB_CONTROLLER),
            ttl: spec.and_then(|spec| spec.ttl_seconds_after_finished),
            deadline: spec.and_then(|spec| spec.active_deadline_seconds),
            backoff_limit: spec.and_then(|spec| spec.backoff_limit),
            // Only the sink looks for pods.
            pod_selector: None,
            started: status.start_time,
            active_pods: status.active.unwrap_or_default(),
            terminating_pods: status.terminating.unwrap_or_default(),
            succeeded_pods: status.succeeded.unwrap_or_default(),
            failed_pods: status.failed.unwrap_or_default(),
            finished: finished(&conditions),
            finishing,
        }
    }
}

impl RawJob<RawTemplate> {
    /// The view of a Job in a review.
    ///
    /// # Errors
    /// If labels are malformed or too many.
    pub(super) fn into_view(mut self) -> serde_json::Result<JobView> {
        let mut metadata = self.metadata.take().unwrap_or_default();
        let labels = metadata.labels.take();
        let mut view = JobView {
            has_labels: labels.is_some(),
            has_annotations: metadata.annotations.is_some(),
            orphans_pods: metadata.deletion_timestamp.is_some()
                && metadata.finalizers.as_ref().is_some_and(|finalizers| finalizers.0),
            generate_name: metadata.generate_name.take().unwrap_or_default(),
            ..JobView::default()
        };
        if let Some(spec) = &mut self.spec {
            view.backoff_limit_per_index = spec.backoff_limit_per_index.is_some();
            view.template = template(spec.template.take())?;
        }
        self.metadata = Some(metadata);
        view.snapshot = self.into_snapshot(all_labels(labels.as_deref())?);
        Ok(view)
    }
}

fn template(template: Option<RawTemplate>) -> serde_json::Result<TemplateView> {
    let Some(template) = template else { return Ok(TemplateView::default()) };
    let has_metadata = template.metadata.is_some();
    let labels = template.metadata.and_then(|metadata| metadata.labels);
    Ok(TemplateView {
        exists: true,
        has_metadata,
        has_labels: labels.is_some(),
        labels: all_labels(labels.as_deref())?,
        containers: template.spec.map(RawPodSpec::into_containers).unwrap_or_default(),
    })
}

fn is_true<'a>(conditions: &'a [RawCondition], kind: &str) -> Option<&'a RawCondition> {
    conditions.iter().find(|condition| condition.kind == kind && condition.status == "True")
}

fn finished(conditions: &[RawCondition]) -> Option<Finished> {
    let (condition, outcome) = [("Complete", Outcome::Completed), ("Failed", Outcome::Failed)]
        .into_iter()
        .find_map(|(kind, outcome)| is_true(conditions, kind).map(|condition| (condition, outcome)))?;
    Some(Finished {
        outcome,
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
        at: condition.last_transition_time.unwrap_or_default(),
    })
}
