//! The apiserver of tests: clients, faults to inject, direct access to the objects.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::testing::apiserver::{
    faults::{Faults, Hooks, LostWrite},
    request::{self, Call, Reply},
    storage::Storage,
};

/// The apiserver; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Apiserver(pub(super) Arc<Server>);

#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) storage: Mutex<Storage>,
    pub(super) faults: Mutex<Faults>,
    pub(super) hooks: Hooks,
    /// The resourceVersion of the last change; also sent when watches have to read again.
    pub(super) changed: watch::Sender<u64>,
    pub(super) reads_held: watch::Sender<bool>,
}

impl Apiserver {
    /// A client that may have many calls in flight.
    pub fn client(&self) -> Client {
        self.slow_client(|_, _| Duration::ZERO)
    }

    /// A client whose calls, by method and path, reach the apiserver this much later.
    pub fn slow_client(&self, delay: impl Fn(&Method, &str) -> Duration + Send + Sync + 'static) -> Client {
        let (server, delay) = (self.clone(), Arc::new(delay));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, delay) = (server.clone(), delay.clone());
            async move {
                match delay(request.method(), request.uri().path()) {
                    Duration::ZERO => {}
                    delay => tokio::time::sleep(delay).await,
                }
                Ok::<_, Infallible>(server.serve(request).await)
            }
        });
        Client::new(service, "default")
    }

    /// Stores an object as it is, whatever is there; `resource` is the plural, such as `jobs`.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        let object = self.0.storage.lock().store(resource, object);
        self.notify();
        object
    }

    /// Changes a stored object.
    ///
    /// # Panics
    /// If it does not exist.
    pub fn change(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object =
            self.get(resource, namespace, name).unwrap_or_else(|| panic!("no {resource} {name}"));
        change(&mut object);
        self.put(resource, object);
    }

    /// Deletes an object, if it exists.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.0.storage.lock().delete(resource, namespace, name);
        self.notify();
    }

    /// An object; cluster-wide ones have the namespace "".
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.storage.lock().get(resource, namespace, name)
    }

    /// All objects of a resource.
    pub fn all(&self, resource: &str) -> Vec<Value> {
        self.0.storage.lock().all(resource, None).into_iter().map(|(_, object)| object).collect()
    }

    /// The log of a container.
    pub fn put_log(&self, pod: &str, container: &str, content: &[u8]) {
        self.0.storage.lock().logs.insert(format!("{pod}/{container}"), content.to_vec());
    }

    /// The resourceVersion of the last change.
    pub fn version(&self) -> u64 {
        self.0.storage.lock().version
    }

    /// The watch events of a resource after one resourceVersion and up to another.
    pub fn events(&self, resource: &str, after: u64, until: u64) -> Vec<(u64, Value)> {
        self.0.storage.lock().events(resource, after, until)
    }

    /// How many writes arrived.
    pub fn writes(&self) -> usize {
        self.0.faults.lock().writes
    }

    /// The writes as `METHOD path code`, with a `!` after the code of an injected fault.
    pub fn calls(&self) -> Vec<String> {
        self.0.storage.lock().calls.clone()
    }

    /// How many objects of a resource were replaced (PUT).
    pub fn replaced(&self, resource: &str) -> usize {
        self.0.storage.lock().replaced.get(resource).copied().unwrap_or_default()
    }

    /// How many consistent lists of a resource were read (first pages without a resourceVersion).
    pub fn lists(&self, resource: &str) -> usize {
        self.0.storage.lock().lists.get(resource).copied().unwrap_or_default()
    }

    /// How many single objects of a resource were read.
    pub fn gets(&self, resource: &str) -> usize {
        self.0.storage.lock().gets.get(resource).copied().unwrap_or_default()
    }

    pub(super) fn notify(&self) {
        self.0.changed.send_replace(self.version());
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap_or_default();
        let call = Call::parse(&parts.method, &parts.uri, &body);
        if call.parameter("watch").is_some_and(|value| value == "true") {
            return self.watch(&call).await;
        }
        let latency = self.0.faults.lock().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency / 2).await;
        }
        let reply = self.reply(&call);
        if call.method == Method::GET && call.resource == "jobs" {
            // A read shows what was stored when it came. One that came before reads were held is not held.
            let mut held = self.0.reads_held.subscribe();
            let _: Result<_, _> = held.wait_for(|held| !held).await;
        }
        if !latency.is_zero() {
            tokio::time::sleep(latency / 2).await;
        }
        reply.into_response()
    }

    fn reply(&self, call: &Call) -> Reply {
        // Without the other locks: hooks may call the apiserver.
        if let Some(code) = self.0.hooks.run(call) {
            return self.record(
                call,
                Reply::refused(
                    code,
                    if code == 404 { "NotFound" } else { "Forbidden" },
                    r#"User "test" cannot do this: an injected fault"#,
                ),
                true,
            );
        }
        if let Some(message) = self.0.hooks.invalid(call) {
            return self.record(call, Reply::refused(422, "Invalid", &message), false);
        }
        let is_write = call.method != Method::GET;
        let (fault, lost) = match self.0.faults.lock().before_call(call) {
            Err(reply) => return if is_write { self.record(call, reply, true) } else { reply },
            Ok(faults) => faults,
        };
        let done = !matches!(lost, Some(LostWrite::Undone | LostWrite::Late));
        let reply = if done {
            self.0.storage.lock().serve(call)
        } else {
            Reply::refused(500, "InternalError", "lost")
        };
        if is_write {
            self.notify();
        }
        let lose = self.0.faults.lock().after_call(call, fault, lost, &reply);
        match lose {
            Some(lost) => {
                self.record(call, reply, false);
                lost
            }
            None => self.record(call, reply, false),
        }
    }

    fn record(&self, call: &Call, reply: Reply, fault: bool) -> Reply {
        if call.method != Method::GET {
            let mark = if fault { "!" } else { "" };
            let line = format!("{} {} {}{mark}", call.method, call.path, reply.code);
            self.0.storage.lock().calls.push(line);
        }
        reply
    }

    /// A watch ends after it has reported something, so that clients resume it.
    async fn watch(&self, call: &Call) -> Response<Body> {
        let from = call.parameter("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
        let mut changed = self.0.changed.subscribe();
        loop {
            let lag = self.0.faults.lock().watch_lag;
            if !lag.is_zero() {
                tokio::time::sleep(lag).await;
            }
            let (forgotten, until) = self.0.faults.lock().watch_limits(&call.resource);
            if from < forgotten {
                let expired =
                    json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
                return request::body(json!({"type": "ERROR", "object": expired}).to_string().into_bytes());
            }
            let events = self.events(&call.resource, from, until);
            let events: Vec<&Value> = events
                .iter()
                .map(|(_, event)| event)
                .filter(|event| call.selects(&event["object"]))
                .collect();
            if !events.is_empty() {
                let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
                return request::body(lines.into_bytes());
            }
            if changed.changed().await.is_err() {
                return request::body(Vec::new());
            }
        }
    }
}
