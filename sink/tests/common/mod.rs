//! A small apiserver in memory: objects by resource, namespace and name, with resourceVersions, preconditions and merge
//! patches as the real one has them, and faults that strike at a chosen write.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod build;

use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What happens to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives, nor does anything after it: the process was killed before.
    DeadBefore,
    /// It takes effect, and the process is killed before it hears of it.
    DeadAfter,
    /// It takes effect, and the answer is lost; the process goes on.
    AnswerLost,
    /// It is answered with this code, and has no effect.
    Code(u16),
    /// It is refused by a quota that is full at that moment, and has no effect.
    Quota,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<(String, String, String), Value>,
    logs: BTreeMap<String, Vec<u8>>,
    version: u64,
    writes: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
    calls: Vec<String>,
    gone: usize,
    gone_hands_tokens: bool,
    refused: BTreeMap<String, (u16, String)>,
}

/// What happens once, right before a call is answered: method and a part of the path, and the deed.
type Hook = (Method, String, Box<dyn FnOnce() + Send>);

#[derive(Default)]
struct Hooks(Mutex<Vec<Hook>>);

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

/// The apiserver; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Apiserver(Arc<Mutex<State>>, Arc<Hooks>);

impl Apiserver {
    /// A client of it, with as many connections as it likes.
    pub fn client(&self) -> Client {
        self.slow_client(|_, _| Duration::ZERO)
    }

    /// The same; each call by method and path is answered so much later.
    pub fn slow_client(&self, late: impl Fn(&Method, &str) -> Duration + Send + Sync + 'static) -> Client {
        let (server, late) = (self.clone(), Arc::new(late));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, late) = (server.clone(), late.clone());
            async move {
                let (parts, body) = request.into_parts();
                match late(&parts.method, parts.uri.path()) {
                    Duration::ZERO => {}
                    late => tokio::time::sleep(late).await,
                }
                let body = body.collect_bytes().await.unwrap_or_default();
                Ok::<_, Infallible>(server.answer(&parts.method, &parts.uri, &body))
            }
        });
        Client::new(service, "default")
    }

    /// Lets the `n`th write from now (from 0) fail.
    pub fn fault(&self, n: usize, fault: Fault) {
        let mut state = self.0.lock();
        state.fault = Some((state.writes + n, fault));
    }

    /// Does something once, right before the first call of this method on a path that contains `path` is answered.
    pub fn before(&self, method: Method, path: &str, deed: impl FnOnce() + Send + 'static) {
        self.1.0.lock().push((method, path.to_owned(), Box::new(deed)));
    }

    /// Refuses every creation of this resource, or of `namespace/resource`.
    pub fn refuse(&self, resource: &str, code: u16, message: &str) {
        self.0.lock().refused.insert(resource.to_owned(), (code, message.to_owned()));
    }

    /// Lets this many continue tokens be too old.
    pub fn forget_tokens(&self, times: usize) {
        self.0.lock().gone = times;
    }

    /// The same, and the answer holds a token to go on with, as the real apiserver's does.
    pub fn expire_tokens(&self, times: usize) {
        let mut state = self.0.lock();
        (state.gone, state.gone_hands_tokens) = (times, true);
    }

    /// A new process: what was dead is alive again, without faults.
    pub fn revive(&self) {
        let mut state = self.0.lock();
        (state.dead, state.fault) = (false, None);
        state.refused.clear();
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        self.0.lock().writes
    }

    /// The writes since the start, as `METHOD path code`.
    pub fn calls(&self) -> Vec<String> {
        self.0.lock().calls.clone()
    }

    /// Puts an object.
    pub fn put(&self, resource: &str, object: Value) {
        self.0.lock().store(resource, object);
    }

    /// Takes an object away.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().objects.remove(&key);
    }

    /// What a container has written.
    pub fn put_log(&self, pod: &str, container: &str, content: &[u8]) {
        self.0.lock().logs.insert(format!("{pod}/{container}"), content.to_vec());
    }

    /// An object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().objects.get(&key).cloned()
    }

    /// All objects of a resource.
    pub fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.0.lock();
        state
            .objects
            .iter()
            .filter(|((kind, ..), _)| kind == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> Response<Body> {
        let due = {
            let mut hooks = self.1.0.lock();
            let due = hooks.iter().position(|(m, path, _)| m == method && uri.path().contains(path.as_str()));
            due.map(|at| hooks.remove(at).2)
        };
        // Without our lock: the deed may well call us.
        due.into_iter().for_each(|deed| deed());
        let mut state = self.0.lock();
        let write = method != Method::GET;
        let gone = |code| status(code, "GatewayTimeout", "the connection is gone");
        if state.dead {
            return gone(504);
        }
        let fault = state.fault.filter(|(n, _)| write && *n == state.writes).map(|(_, fault)| fault);
        if write {
            state.writes += 1;
        }
        match fault {
            Some(Fault::DeadBefore) => {
                state.dead = true;
                return gone(504);
            }
            Some(Fault::Code(code)) => {
                state.calls.push(format!("{method} {} {code}!", uri.path()));
                return status(code, "InternalError", "a fault was asked for");
            }
            Some(Fault::Quota) => {
                state.calls.push(format!("{method} {} 403!", uri.path()));
                let full =
                    "configmaps \"x\" is forbidden: exceeded quota: few, requested: count/configmaps=1";
                return status(403, "Forbidden", full);
            }
            _ => {}
        }
        let answer = state.serve(method, uri, body);
        if write {
            state.calls.push(format!("{method} {} {}", uri.path(), answer.status().as_u16()));
        }
        match fault {
            Some(Fault::DeadAfter) => {
                state.dead = true;
                gone(504)
            }
            Some(Fault::AnswerLost) => gone(504),
            _ => answer,
        }
    }
}

impl State {
    fn store(&mut self, resource: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("namespace"), text("name"));
        self.objects.insert(key, object.clone());
        object
    }

    fn serve(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> Response<Body> {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        // Namespaces themselves are listed as what is in none.
        let at = parts.iter().position(|part| *part == "namespaces").filter(|at| parts.len() > at + 2);
        let Some(at) = at else {
            return self.list(parts[parts.len() - 1], None, uri.query().unwrap_or_default());
        };
        let (namespace, resource) = (parts[at + 1], parts[at + 2]);
        let name = parts.get(at + 3).copied();
        if let (Some(pod), Some(&"log")) = (name, parts.get(at + 4)) {
            let container =
                uri.query().unwrap_or_default().split('&').find_map(|p| p.strip_prefix("container="));
            let key = format!("{pod}/{}", container.unwrap_or_default());
            return match self.logs.get(&key) {
                Some(log) => Response::new(Body::from(log.clone())),
                None => status(404, "NotFound", "no such pod"),
            };
        }
        let Some(name) = name else {
            return match *method {
                Method::POST => self.create(resource, namespace, body),
                _ => self.list(resource, Some(namespace), uri.query().unwrap_or_default()),
            };
        };
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let Some(there) = self.objects.get(&key).cloned() else {
            return status(404, "NotFound", "not found");
        };
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let guard = if *method == Method::DELETE { &sent["preconditions"] } else { &sent["metadata"] };
        for field in ["resourceVersion", "uid"] {
            if guard[field].is_string() && guard[field] != there["metadata"][field] {
                return status(409, "Conflict", "the object has been modified");
            }
        }
        match *method {
            Method::GET => ok(&there),
            Method::DELETE if !sent["dryRun"].is_null() => ok(&there),
            Method::DELETE => {
                if let Some((code, message)) = self.refused.get(&format!("{resource}/{name}")) {
                    return status(*code, "Forbidden", message);
                }
                self.objects.remove(&key);
                ok(&json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}))
            }
            Method::PUT => {
                let mut object = sent;
                object["metadata"]["uid"] = there["metadata"]["uid"].clone();
                ok(&self.store(resource, object))
            }
            Method::PATCH => {
                let mut object = there;
                json_patch::merge(&mut object, &sent);
                ok(&self.store(resource, object))
            }
            _ => status(405, "MethodNotAllowed", "no"),
        }
    }

    /// A page of a list. Continue tokens are the number of objects before; they are not held against changes meanwhile,
    /// so that the keys after what was deleted are found by name.
    fn list(&mut self, resource: &str, namespace: Option<&str>, query: &str) -> Response<Body> {
        let parameter = |key: &str| {
            query
                .split('&')
                .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
                .map(|(_, value)| value)
        };
        let after = parameter("continue").map(|token| token.replace("%2F", "/"));
        let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        if after.is_some() && self.gone > 0 {
            self.gone -= 1;
            let token = after.filter(|_| self.gone_hands_tokens);
            let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                "message": "the provided continue parameter is too old", "metadata": {"continue": token}});
            return Response::builder()
                .status(410)
                .body(Body::from(serde_json::to_vec(&body).unwrap()))
                .unwrap();
        }
        let mut items: Vec<(String, Value)> = self
            .objects
            .iter()
            .filter(|((kind, ns, _), _)| kind == resource && namespace.is_none_or(|wanted| wanted == ns))
            .map(|((_, ns, name), object)| (format!("{ns}/{name}"), object.clone()))
            .filter(|(key, _)| after.as_ref().is_none_or(|after| key > after))
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more).map(|(key, _)| key.clone());
        let items: Vec<_> = items.into_iter().map(|(_, object)| object).collect();
        ok(&json!({"kind": "List", "apiVersion": "v1", "metadata": {"continue": last}, "items": items}))
    }

    fn create(&mut self, resource: &str, namespace: &str, body: &[u8]) -> Response<Body> {
        let refused = self.refused.get(resource);
        if let Some((code, message)) =
            refused.or_else(|| self.refused.get(&format!("{namespace}/{resource}")))
        {
            return status(*code, "Forbidden", message);
        }
        let object: Value = serde_json::from_slice(body).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if self.objects.contains_key(&(resource.to_owned(), namespace.to_owned(), name)) {
            return status(409, "AlreadyExists", "already exists");
        }
        ok(&self.store(resource, object))
    }
}

fn ok(object: &Value) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(object).unwrap()))
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message});
    Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap()
}
