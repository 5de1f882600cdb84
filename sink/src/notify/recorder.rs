//! Writes Events (`events.k8s.io/v1`) under deterministic names, so that a 409 means that the Event exists already.
//!
//! kube's own `Recorder` names Events by time and drops differing notes of a series: after a restart it would write the
//! same Event again. Limits and requirements of Events: `pkg/apis/core/validation/events.go`.

use std::sync::Arc;

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    text::{escape_unsafe, truncate},
};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};

/// Longest note in bytes.
pub(crate) const NOTE_MAX: usize = 1024;
/// `reportingInstance` has at most 128 characters and must not be empty.
const INSTANCE_MAX: usize = 120;

/// Event `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventType {
    Normal,
    Warning,
}

/// The content of an Event.
#[derive(Clone, Debug)]
pub(crate) struct EventSpec {
    /// Namespace of the regarded object; `default` for a cluster-scoped one.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) event_type: EventType,
    pub(crate) reason: &'static str,
    pub(crate) action: &'static str,
    /// Escaped for terminals and truncated to [`NOTE_MAX`].
    pub(crate) note: String,
    pub(crate) regarding: ObjectReference,
    pub(crate) related: Option<ObjectReference>,
}

/// Writes Events; clones share one client.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    instance: Arc<str>,
}

impl Recorder {
    /// `instance` is the replica's name, the Events' `reportingInstance`.
    pub fn new(client: Client, instance: &str) -> Self {
        let mut instance = instance.to_owned();
        truncate(&mut instance, INSTANCE_MAX);
        if instance.is_empty() {
            keys::APP.clone_into(&mut instance);
        }
        Self { client, instance: instance.into() }
    }

    /// Creates the Event; returns false where an Event of that name exists already.
    pub(crate) async fn publish(&self, spec: &EventSpec) -> Result<bool, ApiError> {
        let what = format!("create event {}/{}", spec.namespace, spec.name);
        match call(&what, self.api(&spec.namespace).create(&PostParams::default(), &self.event(spec))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// For Events whose series count is updated.
    pub(crate) fn api(&self, namespace: &str) -> Api<Event> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn event(&self, spec: &EventSpec) -> Event {
        let mut note = escape_unsafe(&spec.note).into_owned();
        truncate(&mut note, NOTE_MAX);
        Event {
            metadata: ObjectMeta {
                namespace: Some(spec.namespace.clone()),
                name: Some(spec.name.clone()),
                ..ObjectMeta::default()
            },
            action: Some(spec.action.to_owned()),
            event_time: Some(MicroTime(jiff::Timestamp::now())),
            note: Some(note),
            reason: Some(spec.reason.to_owned()),
            regarding: Some(spec.regarding.clone()),
            related: spec.related.clone(),
            reporting_controller: Some(keys::REPORTING_CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.to_string()),
            type_: Some(match spec.event_type {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            ..Event::default()
        }
    }
}

/// Refers to a Job; a refused create has no uid.
pub(crate) fn job_reference(namespace: &str, name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::testing::apiserver::Apiserver;

    use super::*;

    #[tokio::test]
    async fn a_note_is_short_and_drives_no_terminal() {
        let apiserver = Apiserver::default();
        let recorder = Recorder::new(apiserver.client(), "sink-0");
        let spec = EventSpec {
            namespace: "ci".into(),
            name: "a.1".into(),
            event_type: EventType::Warning,
            reason: keys::REASON_REFUSED,
            action: "Refused",
            note: format!("job a\u{1b}[2J\u{202e}\n{}", "x".repeat(5000)),
            regarding: job_reference("ci", "a", None),
            related: None,
        };
        assert!(recorder.publish(&spec).await.unwrap());
        let event = apiserver.get("events", "ci", "a.1").unwrap();
        let note = event["note"].as_str().unwrap();
        assert!(note.starts_with("job a\\u001b[2J\\u202e\\nxxx") && note.len() <= NOTE_MAX, "{note}");
    }
}
