//! Which calls fail, and how.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

/// A call to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiCall {
    /// HTTP method.
    pub method: Method,
    /// Path, without the query.
    pub path: String,
    /// Query, without the question mark.
    pub query: String,
    /// Name of the object; for a create, the one in the body.
    pub name: Option<String>,
}

impl ApiCall {
    pub(super) fn new(method: Method, uri: &hyper::Uri, body: &[u8]) -> Self {
        let in_body =
            || serde_json::from_slice::<Value>(body).ok()?["metadata"]["name"].as_str().map(str::to_owned);
        let name = if method == Method::POST { in_body() } else { name_of(uri.path()) };
        Self { method, path: uri.path().to_owned(), query: uri.query().unwrap_or_default().to_owned(), name }
    }

    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && self.query.split('&').any(|pair| pair.starts_with("watch=true"))
    }

    /// Whether it is a write.
    pub fn is_write(&self) -> bool {
        ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&self.method)
    }
}

/// The name in `/…/namespaces/NS/RESOURCE/NAME[/SUBRESOURCE]`, or in the same without a namespace.
fn name_of(path: &str) -> Option<String> {
    let mut parts = path.trim_matches('/').split('/');
    // api/v1 or apis/GROUP/v1.
    let skipped = if parts.next()? == "apis" { 2 } else { 1 };
    let rest: Vec<&str> = parts.skip(skipped).collect();
    match rest.as_slice() {
        ["namespaces", _, _, name, ..] => Some((*name).to_owned()),
        ["namespaces", _, _] => None,
        [_, name, ..] => Some((*name).to_owned()),
        _ => None,
    }
}

/// What happens to a call.
#[derive(Clone)]
pub enum ProxyFault {
    /// Refused with this code; not forwarded to the API server.
    Refuse(u16),
    /// Refused with this code and message.
    RefuseWith(u16, String),
    /// The connection is closed before the call is forwarded.
    Disconnect,
    /// The connection is closed after the call took effect.
    DisconnectAfter,
    /// The call takes effect but is never answered: the caller's timeout expires.
    Timeout,
    /// The call is forwarded after this time.
    DelayCall(Duration),
    /// The call takes effect at once; the answer is returned after this time.
    DelayAnswer(Duration),
    /// The call takes effect; then this function is called, and the connection is closed.
    Callback(Arc<dyn Fn(&ApiCall) + Send + Sync>),
}

impl ProxyFault {
    /// Calls `callback` after the call took effect. The caller gets no answer.
    pub fn callback(callback: impl Fn(&ApiCall) + Send + Sync + 'static) -> Self {
        Self::Callback(Arc::new(callback))
    }
}

impl fmt::Debug for ProxyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refuse(code) | Self::RefuseWith(code, _) => write!(f, "Refuse({code})"),
            Self::Disconnect => f.write_str("Disconnect"),
            Self::DisconnectAfter => f.write_str("DisconnectAfter"),
            Self::Timeout => f.write_str("Timeout"),
            Self::DelayCall(time) => write!(f, "DelayCall({time:?})"),
            Self::DelayAnswer(time) => write!(f, "DelayAnswer({time:?})"),
            Self::Callback(_) => f.write_str("Callback"),
        }
    }
}

type CallPredicate = Box<dyn Fn(&ApiCall) -> bool + Send + Sync>;

/// Matches calls by all of its conditions, and injects a fault into each match, at most [`Rule::times`] times.
pub struct Rule {
    fault: ProxyFault,
    holds: Vec<CallPredicate>,
    skip: usize,
    times: usize,
}

impl Rule {
    /// Matches every call.
    pub fn new(fault: ProxyFault) -> Self {
        Self { fault, holds: Vec::new(), skip: 0, times: usize::MAX }
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, holds: impl Fn(&ApiCall) -> bool + Send + Sync + 'static) -> Self {
        self.holds.push(Box::new(holds));
        self
    }

    /// Matches only writes.
    #[must_use]
    pub fn writes(self) -> Self {
        self.when(ApiCall::is_write)
    }

    /// Matches only this HTTP method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        self.when(move |call| call.method == method)
    }

    /// Matches only paths that contain this text.
    #[must_use]
    pub fn path(self, part: impl Into<String>) -> Self {
        let part = part.into();
        self.when(move |call| call.path.contains(&part))
    }

    /// Matches only objects whose name has this prefix.
    #[must_use]
    pub fn name_prefix(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.when(move |call| call.name.as_ref().is_some_and(|known| known.starts_with(&name)))
    }

    /// Forwards this number of matching calls first.
    #[must_use]
    pub fn skip(mut self, calls: usize) -> Self {
        self.skip = calls;
        self
    }

    /// Forwards all matching calls after this number of faults.
    #[must_use]
    pub fn times(mut self, calls: usize) -> Self {
        self.times = calls;
        self
    }

    pub(super) fn activate(self) -> (ActiveRule, FaultCount) {
        let faults = FaultCount(Arc::new(AtomicUsize::new(0)));
        (ActiveRule { rule: self, seen: 0, faults: faults.clone() }, faults)
    }
}

/// How often a rule has injected its fault.
#[derive(Clone, Debug)]
pub struct FaultCount(Arc<AtomicUsize>);

impl FaultCount {
    /// The number of faults.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A rule with its counters.
pub(super) struct ActiveRule {
    rule: Rule,
    seen: usize,
    faults: FaultCount,
}

impl ActiveRule {
    /// Counts the call if it matches, and returns whether to inject the fault.
    pub(super) fn is_due(&mut self, call: &ApiCall) -> bool {
        if !self.rule.holds.iter().all(|holds| holds(call)) {
            return false;
        }
        self.seen += 1;
        self.seen > self.rule.skip && self.faults.count() < self.rule.times
    }

    pub(super) fn inject(&self) -> ProxyFault {
        self.faults.0.fetch_add(1, Ordering::SeqCst);
        self.rule.fault.clone()
    }
}

impl fmt::Debug for ActiveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after {}, faults {:?}", self.rule.fault, self.rule.skip, self.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: Method, uri: &str, body: &str) -> ApiCall {
        ApiCall::new(method, &uri.parse().unwrap(), body.as_bytes())
    }

    #[test]
    fn object_names_are_parsed() {
        for (method, uri, body, name) in [
            (Method::GET, "/api/v1/namespaces/ci/pods/a/log?follow=true", "", Some("a")),
            (Method::GET, "/api/v1/namespaces/ci/pods", "", None),
            (Method::PATCH, "/apis/batch/v1/namespaces/ci/jobs/b", "{}", Some("b")),
            (Method::POST, "/api/v1/namespaces/ci/configmaps", r#"{"metadata":{"name":"c"}}"#, Some("c")),
            (Method::DELETE, "/apis/job-handler.io/v1alpha1/clusterjobpolicies/d", "", Some("d")),
            (Method::GET, "/api/v1/namespaces/ci", "", Some("ci")),
            (Method::GET, "/apis/batch/v1/jobs?watch=true", "", None),
        ] {
            assert_eq!(call(method, uri, body).name.as_deref(), name, "{uri}");
        }
    }

    #[test]
    fn a_rule_skips_then_injects_then_stops() {
        let rule = Rule::new(ProxyFault::Disconnect).writes().path("/ci/").name_prefix("a").skip(1).times(2);
        let (mut entry, faults) = rule.activate();
        let hit = call(Method::DELETE, "/api/v1/namespaces/ci/pods/a-1", "");
        let other = call(Method::GET, "/api/v1/namespaces/ci/pods/a-1", "");
        let mut seen = Vec::new();
        for call in [&other, &hit, &hit, &other, &hit, &hit] {
            let due = entry.is_due(call);
            if due {
                entry.inject();
            }
            seen.push(due);
        }
        assert_eq!(seen, [false, false, true, false, true, false]);
        assert_eq!(faults.count(), 2);
    }
}
