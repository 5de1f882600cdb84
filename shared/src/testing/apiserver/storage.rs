//! The stored objects, and what calls do to them.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use super::request::{Call, Reply};

type ObjectKey = (String, String, String);

#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) version: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<ObjectKey, Value>,
    /// Resource, resourceVersion, event.
    events: Vec<(String, u64, Value)>,
    pub(super) logs: BTreeMap<String, Vec<u8>>,
    pub(super) calls: Vec<String>,
    pub(super) replaced: BTreeMap<String, usize>,
    pub(super) lists: BTreeMap<String, usize>,
    pub(super) gets: BTreeMap<String, usize>,
    pub(super) refused: BTreeMap<String, (u16, String)>,
    pub(super) page: Option<usize>,
    pub(super) expired_tokens: usize,
    pub(super) resumable: bool,
}

impl Storage {
    pub(super) fn store(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        let before = self.objects.insert(key_of(resource, &object), object.clone());
        self.report(resource, if before.is_some() { "MODIFIED" } else { "ADDED" }, &object);
        object
    }

    pub(super) fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(mut object) = self.objects.remove(&key) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.report(resource, "DELETED", &object);
    }

    /// Replaces an object by its resourceVersion, as PUT does.
    pub(super) fn replace(&mut self, resource: &str, mut object: Value) -> Reply {
        let Some(stored) = self.objects.get(&key_of(resource, &object)) else { return not_found() };
        if let Some(conflict) = conflict(&object["metadata"], stored) {
            return conflict;
        }
        object["metadata"]["uid"] = stored["metadata"]["uid"].clone();
        *self.replaced.entry(resource.to_owned()).or_default() += 1;
        Reply::object(200, &self.store(resource, object))
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a resource, of one namespace or all, by `NAMESPACE/NAME`.
    pub(super) fn all(&self, resource: &str, namespace: Option<&str>) -> Vec<(String, Value)> {
        let selected = |(kind, of, _): &&ObjectKey| {
            kind == resource && namespace.is_none_or(|namespace| namespace == of)
        };
        let keys = self.objects.keys().filter(selected);
        keys.map(|key| (format!("{}/{}", key.1, key.2), self.objects[key].clone())).collect()
    }

    pub(super) fn events(&self, resource: &str, after: u64, until: u64) -> Vec<(u64, Value)> {
        let events = self
            .events
            .iter()
            .filter(|(of, version, _)| of == resource && (after + 1..=until).contains(version));
        events.map(|(_, version, event)| (*version, event.clone())).collect()
    }

    fn report(&mut self, resource: &str, kind: &str, object: &Value) {
        self.events.push((resource.to_owned(), self.version, json!({"type": kind, "object": object})));
    }

    pub(super) fn serve(&mut self, call: &Call) -> Reply {
        match (&call.name, call.subresource.as_deref()) {
            (Some(pod), Some("log")) => {
                let container = call.parameter("container").unwrap_or_default();
                let log = self.logs.get(&format!("{pod}/{container}"));
                log.map_or_else(not_found, |log| Reply::bytes(log.clone()))
            }
            (Some(name), _) => self.serve_object(call, name),
            (None, _) if call.method == Method::POST => self.create(call),
            (None, _) => self.list(call),
        }
    }

    fn serve_object(&mut self, call: &Call, name: &str) -> Reply {
        if call.method == Method::GET {
            *self.gets.entry(call.resource.clone()).or_default() += 1;
        }
        let Some(stored) = self.get(&call.resource, &call.namespace, name) else { return not_found() };
        let sent = &call.body;
        let is_delete = call.method == Method::DELETE;
        let preconditions = if is_delete { &sent["preconditions"] } else { &sent["metadata"] };
        if let Some(conflict) = conflict(preconditions, &stored) {
            return conflict;
        }
        match call.method {
            Method::GET => Reply::object(200, &stored),
            Method::PUT => {
                let mut object = sent.clone();
                for field in ["namespace", "name"] {
                    object["metadata"][field] = stored["metadata"][field].clone();
                }
                self.replace(&call.resource, object)
            }
            Method::PATCH => self.patch(&call.resource, stored, sent),
            Method::DELETE if !sent["dryRun"].is_null() => Reply::object(200, &stored),
            Method::DELETE => {
                if let Some((code, message)) = self.refused.get(&format!("{}/{name}", call.resource)) {
                    return Reply::refused(*code, "Forbidden", message);
                }
                self.delete(&call.resource, &call.namespace, name);
                Reply::object(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}),
                )
            }
            _ => Reply::refused(405, "MethodNotAllowed", "no"),
        }
    }

    /// A JSON patch is an array, a merge patch an object.
    fn patch(&mut self, resource: &str, mut object: Value, patch: &Value) -> Reply {
        if patch.is_array() {
            let patched = serde_json::from_value::<json_patch::Patch>(patch.clone())
                .map_err(|error| error.to_string())
                .and_then(|patch| json_patch::patch(&mut object, &patch).map_err(|error| error.to_string()));
            if let Err(message) = patched {
                return Reply::refused(422, "Invalid", &message);
            }
        } else {
            json_patch::merge(&mut object, patch);
        }
        Reply::object(200, &self.store(resource, object))
    }

    fn create(&mut self, call: &Call) -> Reply {
        let resource = &call.resource;
        let refused = self.refused.get(resource);
        let refused = refused.or_else(|| self.refused.get(&format!("{}/{resource}", call.namespace)));
        if let Some((code, message)) = refused {
            return Reply::refused(*code, "Forbidden", message);
        }
        let mut object = call.body.clone();
        if !call.namespace.is_empty() {
            object["metadata"]["namespace"] = call.namespace.as_str().into();
        }
        if self.objects.contains_key(&key_of(resource, &object)) {
            return Reply::refused(409, "AlreadyExists", "already exists");
        }
        if call.parameter("dryRun").is_some() {
            return Reply::object(201, &object);
        }
        Reply::object(201, &self.store(resource, object))
    }

    /// A page of a list. The continue token is the last key, so that objects deleted meanwhile do no harm.
    fn list(&mut self, call: &Call) -> Reply {
        let after = call.parameter("continue").map(|token| token.replace("%2F", "/"));
        if after.is_none() && call.parameter("resourceVersion").is_none() {
            *self.lists.entry(call.resource.clone()).or_default() += 1;
        }
        if after.is_some() && self.expired_tokens > 0 {
            self.expired_tokens -= 1;
            let token = after.filter(|_| self.resumable);
            let message = "the provided continue parameter is too old";
            return Reply::object(
                410,
                &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                    "message": message, "metadata": {"continue": token}}),
            );
        }
        let asked = call.parameter("limit").and_then(|limit| limit.parse().ok());
        let limit = self.page.or(asked).unwrap_or(usize::MAX);
        let namespace = (!call.namespace.is_empty()).then_some(call.namespace.as_str());
        let mut items = self.all(&call.resource, namespace);
        items.retain(|(key, object)| after.as_ref().is_none_or(|after| key > after) && call.selects(object));
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more).map(|(key, _)| key.clone());
        let items: Vec<Value> = items.into_iter().map(|(_, object)| object).collect();
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": last});
        Reply::object(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }
}

fn key_of(resource: &str, object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (resource.to_owned(), text("namespace"), text("name"))
}

fn conflict(preconditions: &Value, stored: &Value) -> Option<Reply> {
    let differs = |field: &&str| {
        preconditions[*field].is_string() && preconditions[*field] != stored["metadata"][*field]
    };
    let differs = ["resourceVersion", "uid"].iter().any(differs);
    differs.then(|| Reply::refused(409, "Conflict", "the object has been modified"))
}

fn not_found() -> Reply {
    Reply::refused(404, "NotFound", "not found")
}
