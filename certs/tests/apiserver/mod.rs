//! A small apiserver in memory behind tower-test: one Secret, one MutatingWebhookConfiguration, resourceVersions, and
//! faults to order.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

pub const SECRET: &str = "/api/v1/namespaces/ns/secrets/ca";
pub const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/job-handler";

/// An answer's body.
type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// What the next request to a path is answered instead.
type Fault = Box<dyn FnOnce(&mut State) -> Option<StatusCode> + Send>;

#[derive(Default)]
pub struct State {
    objects: HashMap<String, Value>,
    version: u64,
    faults: HashMap<(Method, String), Vec<Fault>>,
    /// Every write that was tried: `METHOD path -> code`.
    pub writes: Vec<String>,
}

impl State {
    pub fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object);
    }
}

#[derive(Clone)]
pub struct Apiserver {
    pub state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Apiserver {
    /// A server with nothing in it, and a client of it.
    pub fn start() -> (Self, Client) {
        let server = Self { state: Arc::new(Mutex::new(State::default())), changed: watch::channel(()).0 };
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Answer>>();
        let answering = server.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let answering = answering.clone();
                tokio::spawn(async move { send.send_response(answering.answer(request).await) });
            }
        });
        (server, Client::new(service, "default"))
    }

    pub fn put(&self, path: &str, object: Value) {
        self.state.lock().put(path, object);
        self.changed.send_replace(());
    }

    pub fn remove(&self, path: &str) {
        self.state.lock().objects.remove(path);
        self.changed.send_replace(());
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Runs `fault` at the next such request; a code it gives is the answer.
    pub fn fault(
        &self,
        method: Method,
        path: &str,
        fault: impl FnOnce(&mut State) -> Option<StatusCode> + Send + 'static,
    ) {
        let key = (method, path.to_owned());
        self.state.lock().faults.entry(key).or_default().push(Box::new(fault));
    }

    pub fn writes(&self) -> Vec<String> {
        self.state.lock().writes.clone()
    }

    /// The PEM in the configuration's first caBundle.
    pub fn published(&self) -> Option<String> {
        let bundle = self.get(CONFIGURATION)?["webhooks"][0]["clientConfig"]["caBundle"].as_str()?.to_owned();
        Some(String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap())
    }

    /// One value of the Secret.
    pub fn secret(&self, key: &str) -> String {
        let secret = self.get(SECRET).expect("the Secret is there");
        String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap()).unwrap()
    }

    /// Waits until `condition` holds, at most ten seconds.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let poll = async {
            while !condition(self) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), poll)
            .await
            .unwrap_or_else(|_| panic!("in vain: {what}; writes: {:?}", self.writes()));
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let collection = query.contains("fieldSelector");
        if collection && query.contains("watch=true") {
            return self.watch();
        }
        let mut state = self.state.lock();
        let fault = state.faults.get_mut(&(parts.method.clone(), path.clone())).and_then(Vec::pop);
        let ordered = fault.and_then(|fault| fault(&mut state));
        let (code, answer) = match ordered {
            Some(code) => (code, json!({"message": r#"User "test" cannot do this: as ordered"#})),
            None => handle(&mut state, &parts.method, &path, collection, &body),
        };
        if parts.method != Method::GET {
            state.writes.push(format!("{} {path} -> {}", parts.method, code.as_u16()));
            self.changed.send_replace(());
        }
        let reason = match code {
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::CONFLICT => "AlreadyExists",
            StatusCode::FORBIDDEN => "Forbidden",
            _ => "Invalid",
        };
        let answer = if code.is_success() {
            answer
        } else {
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
                   "reason": reason, "message": answer["message"]})
        };
        Response::builder()
            .status(code)
            .body(Full::from(serde_json::to_vec(&answer).unwrap()).boxed_unsync())
            .unwrap()
    }

    /// A watch that says «too old» at the next change, so that the watcher lists again.
    fn watch(&self) -> Response<Answer> {
        let mut changed = self.changed.subscribe();
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": 410, "reason": "Expired", "message": "too old"}});
        let line = async move {
            // The server outlives its watches in these tests.
            let _ = changed.changed().await;
            Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{gone}\n"))))
        };
        Response::new(StreamBody::new(futures::stream::once(line)).boxed_unsync())
    }
}

fn handle(state: &mut State, method: &Method, path: &str, list: bool, body: &[u8]) -> (StatusCode, Value) {
    let not_found = || (StatusCode::NOT_FOUND, json!({"message": format!("{path} not found")}));
    match *method {
        Method::GET if list => {
            let items: Vec<_> = state
                .objects
                .iter()
                .filter(|(at, _)| at.rsplit_once('/').is_some_and(|(of, _)| of == path))
                .map(|(_, object)| object.clone())
                .collect();
            (StatusCode::OK, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
        }
        Method::GET => state.objects.get(path).map_or_else(not_found, |o| (StatusCode::OK, o.clone())),
        Method::POST => {
            let object: Value = serde_json::from_slice(body).unwrap();
            let at = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap());
            if state.objects.contains_key(&at) {
                return (StatusCode::CONFLICT, json!({"message": "already exists"}));
            }
            state.put(&at, object);
            (StatusCode::CREATED, state.objects[&at].clone())
        }
        Method::PATCH => {
            let Some(mut object) = state.objects.get(path).cloned() else { return not_found() };
            let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
            if let Err(error) = json_patch::patch(&mut object, &patch) {
                return (StatusCode::UNPROCESSABLE_ENTITY, json!({"message": error.to_string()}));
            }
            state.put(path, object);
            (StatusCode::OK, state.objects[path].clone())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"message": "not in these tests"})),
    }
}

/// A MutatingWebhookConfiguration as the base install has it, cut down.
pub fn configuration() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "job-handler"},
        "webhooks": [{
            "name": "stamp.job-handler.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"service": {"name": "job-handler", "namespace": "ns", "path": "/mutate"}},
        }],
    })
}
