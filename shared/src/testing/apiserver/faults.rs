//! What the apiserver does wrong when tests ask for it.

use std::{collections::BTreeMap, fmt, time::Duration};

use http::Method;
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    Apiserver,
    request::{Call, Reply},
};

/// What happens to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives, nor does any later call: the client was killed before.
    DeadBefore,
    /// It takes effect, and the client is killed before it reads the response.
    DeadAfter,
    /// It takes effect, and the response is lost.
    AnswerLost,
    /// It fails with this code and has no effect.
    Code(u16),
    /// An exceeded ResourceQuota rejects it.
    Quota,
}

/// The fate of a replace (PUT) whose response is an error that leaves the outcome open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostWrite {
    /// It took effect.
    Done,
    /// It did not, and never will.
    Undone,
    /// It takes effect later ([`Apiserver::arrive`]), unless another write comes first.
    Late,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    /// How long a call takes; it takes effect in the middle.
    pub(super) latency: Duration,
    /// How long a watch takes to report a change.
    pub(super) watch_lag: Duration,
    pub(super) writes: usize,
    at_write: Option<(usize, Fault)>,
    dead: bool,
    refuse_all: Option<u16>,
    /// Writes that contain this text are too large for etcd.
    too_large: Option<String>,
    lose_replaces: usize,
    replaces: usize,
    lose_next: Option<LostWrite>,
    late: Option<(String, Value)>,
    /// By resource: watches from before this resourceVersion are expired; watches report nothing after this one.
    forgotten: BTreeMap<String, u64>,
    reported_until: BTreeMap<String, u64>,
}

impl Faults {
    /// Decides what happens to a call before it takes effect.
    pub(super) fn before_call(&mut self, call: &Call) -> Result<(Option<Fault>, Option<LostWrite>), Reply> {
        if self.dead {
            return Err(no_response());
        }
        if let Some(code) = self.refuse_all {
            return Err(Reply::refused(code, "x", "no"));
        }
        if call.method == Method::GET {
            return Ok((None, None));
        }
        if self.too_large.as_ref().is_some_and(|text| call.body.to_string().contains(text)) {
            self.writes += 1;
            return Err(Reply::refused(500, "InternalError", "etcdserver: request is too large"));
        }
        let fault = self.at_write.filter(|(n, _)| *n == self.writes).map(|(_, fault)| fault);
        self.writes += 1;
        match fault {
            Some(Fault::DeadBefore) => {
                self.dead = true;
                return Err(no_response());
            }
            Some(Fault::Code(code)) => {
                return Err(Reply::refused(code, "InternalError", "an injected fault"));
            }
            Some(Fault::Quota) => {
                let message =
                    "configmaps \"x\" is forbidden: exceeded quota: few, requested: count/configmaps=1";
                return Err(Reply::refused(403, "Forbidden", message));
            }
            _ => {}
        }
        let lost = if call.method == Method::PUT { self.lose_next.take() } else { None };
        if lost == Some(LostWrite::Late) {
            self.late = Some((call.resource.clone(), call.body.clone()));
        }
        Ok((fault, lost))
    }

    /// Decides, after a call took effect, whether its response is lost.
    pub(super) fn after_call(
        &mut self,
        call: &Call,
        fault: Option<Fault>,
        lost: Option<LostWrite>,
        reply: &Reply,
    ) -> Option<Reply> {
        match fault {
            Some(Fault::DeadAfter) => {
                self.dead = true;
                return Some(no_response());
            }
            Some(Fault::AnswerLost) => return Some(no_response()),
            _ => {}
        }
        if lost.is_some() {
            return Some(Reply::refused(500, "x", "no"));
        }
        if call.method == Method::PUT && reply.code == 200 {
            self.replaces += 1;
            if self.lose_replaces > 0 && (self.replaces - 1).is_multiple_of(self.lose_replaces) {
                return Some(Reply::refused(500, "x", "no"));
            }
        }
        None
    }

    /// From which resourceVersion on watches of a resource can resume, and up to which they report.
    pub(super) fn watch_limits(&self, resource: &str) -> (u64, u64) {
        let of = |map: &BTreeMap<String, u64>| map.get(resource).copied();
        (of(&self.forgotten).unwrap_or_default(), of(&self.reported_until).unwrap_or(u64::MAX))
    }
}

fn no_response() -> Reply {
    Reply::refused(504, "GatewayTimeout", "the connection is gone")
}

/// What to do once, right before a call takes effect; a code becomes the response.
type Hook = Box<dyn FnOnce() -> Option<u16> + Send>;

/// Returns the message if the apiserver rejects this object.
type Validation = Box<dyn Fn(&Value) -> Option<String> + Send>;

#[derive(Default)]
pub(super) struct Hooks {
    once: Mutex<Vec<(Method, String, Hook)>>,
    validations: Mutex<Vec<(String, Validation)>>,
}

impl Hooks {
    pub(super) fn run(&self, call: &Call) -> Option<u16> {
        let hook = {
            let mut hooks = self.once.lock();
            let due =
                hooks.iter().position(|(method, path, _)| *method == call.method && call.path.contains(path));
            due.map(|at| hooks.remove(at).2)
        };
        hook.and_then(|hook| hook())
    }

    /// Why a create or replace is invalid.
    pub(super) fn invalid(&self, call: &Call) -> Option<String> {
        let writes = [Method::POST, Method::PUT].contains(&call.method);
        let validations = self.validations.lock();
        let mut of_resource = validations.iter().filter(|(resource, _)| writes && *resource == call.resource);
        of_resource.find_map(|(_, validation)| validation(&call.body))
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

impl Apiserver {
    /// Every call takes this long and takes effect in the middle.
    #[must_use]
    pub fn with_latency(self, latency: Duration) -> Self {
        self.0.faults.lock().latency = latency;
        self
    }

    /// Watches report each change this much later.
    #[must_use]
    pub fn with_watch_lag(self, lag: Duration) -> Self {
        self.0.faults.lock().watch_lag = lag;
        self
    }

    /// Of this many replaces, one takes effect and its response is lost.
    #[must_use]
    pub fn with_lost_responses(self, every: usize) -> Self {
        self.0.faults.lock().lose_replaces = every;
        self
    }

    /// Lists have at most this many objects per page, whatever the client asks for.
    #[must_use]
    pub fn with_page(self, size: usize) -> Self {
        self.0.storage.lock().page = Some(size);
        self
    }

    /// The `n`th write from now (from 0) fails.
    pub fn fault(&self, n: usize, fault: Fault) {
        let mut faults = self.0.faults.lock();
        faults.at_write = Some((faults.writes + n, fault));
    }

    /// Runs `hook` once, right before the first call of this method whose path contains `path`.
    pub fn before(&self, method: Method, path: &str, hook: impl FnOnce() + Send + 'static) {
        let hook = Box::new(|| {
            hook();
            None
        });
        self.0.hooks.once.lock().push((method, path.to_owned(), hook));
    }

    /// The first call of this method whose path contains `path` fails with this code.
    pub fn refuse_once(&self, method: Method, path: &str, code: u16) {
        self.0.hooks.once.lock().push((method, path.to_owned(), Box::new(move || Some(code))));
    }

    /// Creates and replaces of a resource fail with 422 and this message where `validation` returns one.
    pub fn validate(&self, resource: &str, validation: impl Fn(&Value) -> Option<String> + Send + 'static) {
        self.0.hooks.validations.lock().push((resource.to_owned(), Box::new(validation)));
    }

    /// Refuses every creation of a resource, or of `NAMESPACE/RESOURCE`, and every deletion of `RESOURCE/NAME`.
    pub fn refuse(&self, resource: &str, code: u16, message: &str) {
        self.0.storage.lock().refused.insert(resource.to_owned(), (code, message.to_owned()));
    }

    /// Every write that contains this text fails as one that is too large for etcd.
    pub fn reject(&self, text: &str) {
        self.0.faults.lock().too_large = Some(text.to_owned());
    }

    /// Every call but watches fails with this code, or none any more.
    pub fn refuse_all(&self, code: Option<u16>) {
        self.0.faults.lock().refuse_all = code;
    }

    /// The fate of the next replace. Returns what was set before and has not happened.
    pub fn lose_next(&self, lost: Option<LostWrite>) -> Option<LostWrite> {
        std::mem::replace(&mut self.0.faults.lock().lose_next, lost)
    }

    /// The late replace takes effect now, unless its precondition fails.
    ///
    /// # Panics
    /// If no replace is late.
    pub fn arrive(&self) {
        let late = self.0.faults.lock().late.take();
        let (resource, object) = late.expect("a replace that is late");
        self.0.storage.lock().replace(&resource, object);
        self.notify();
    }

    /// Starts a new client process: calls succeed again.
    pub fn revive(&self) {
        let mut faults = self.0.faults.lock();
        (faults.dead, faults.at_write) = (false, None);
        self.0.storage.lock().refused.clear();
    }

    /// This many continue tokens are expired. With `resumable`, the error has a token to go on with.
    pub fn expire_tokens(&self, times: usize, resumable: bool) {
        let mut storage = self.0.storage.lock();
        (storage.expired_tokens, storage.resumable) = (times, resumable);
    }

    /// Reads of Jobs get their response only after this is set to false.
    pub fn hold_reads(&self, hold: bool) {
        self.0.reads_held.send_replace(hold);
    }

    /// Watches of a resource report nothing that happens from now on, or (true) everything.
    pub fn report(&self, resource: &str, reports: bool) {
        let version = self.version();
        let mut faults = self.0.faults.lock();
        if reports {
            faults.reported_until.remove(resource);
        } else {
            faults.reported_until.insert(resource.to_owned(), version);
        }
        drop(faults);
        self.notify();
    }

    /// Watches of a resource that began before now are expired (410).
    pub fn forget(&self, resource: &str) {
        let version = self.version();
        self.0.faults.lock().forgotten.insert(resource.to_owned(), version);
        self.notify();
    }
}
