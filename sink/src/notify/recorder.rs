//! Writes Events (`events.k8s.io/v1`) under names that are derived from what they tell: a 409 means «already told».
//!
//! Limits and requirements: `pkg/apis/core/validation/events.go`.

use std::sync::Arc;

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    text::truncate,
};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};

/// Longest note, bytes.
pub const NOTE_MAX: usize = 1024;

/// How an Event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing wrong.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What an Event tells.
#[derive(Clone, Debug)]
pub struct Told {
    /// Namespace of the Event: that of what it is about, `default` for what has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How it is meant.
    pub kind: Kind,
    /// Reason.
    pub reason: &'static str,
    /// Action.
    pub action: &'static str,
    /// Text; cut to [`NOTE_MAX`].
    pub note: String,
    /// What it is about.
    pub regarding: ObjectReference,
    /// What else has to do with it.
    pub related: Option<ObjectReference>,
}

/// Writes Events; clones are the same one.
#[derive(Clone)]
pub struct Teller {
    client: Client,
    instance: Arc<str>,
}

impl Teller {
    /// `instance` is the replica's name.
    pub fn new(client: Client, instance: &str) -> Self {
        let mut instance = instance.to_owned();
        // At most 128 characters, and not none.
        truncate(&mut instance, 120);
        if instance.is_empty() {
            keys::APP.clone_into(&mut instance);
        }
        Self { client, instance: instance.into() }
    }

    /// Writes an Event unless one of its name is there already; tells whether it did.
    ///
    /// # Errors
    /// Where it could not be written.
    pub async fn tell(&self, told: &Told) -> Result<bool, ApiError> {
        let api = Api::<Event>::namespaced(self.client.clone(), &told.namespace);
        let what = format!("create event {}/{}", told.namespace, told.name);
        match call(&what, api.create(&PostParams::default(), &self.event(told))).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The client, for series that are updated.
    pub fn api(&self, namespace: &str) -> Api<Event> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn event(&self, told: &Told) -> Event {
        let mut note = told.note.clone();
        truncate(&mut note, NOTE_MAX);
        Event {
            metadata: ObjectMeta {
                namespace: Some(told.namespace.clone()),
                name: Some(told.name.clone()),
                ..ObjectMeta::default()
            },
            action: Some(told.action.to_owned()),
            event_time: Some(MicroTime(jiff::Timestamp::now())),
            note: Some(note),
            reason: Some(told.reason.to_owned()),
            regarding: Some(told.regarding.clone()),
            related: told.related.clone(),
            reporting_controller: Some(keys::REPORTING_CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.to_string()),
            type_: Some(match told.kind {
                Kind::Normal => "Normal".to_owned(),
                Kind::Warning => "Warning".to_owned(),
            }),
            ..Event::default()
        }
    }
}

/// Refers to a Job; without a uid where it was never created.
pub fn job_reference(namespace: &str, name: &str, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}
