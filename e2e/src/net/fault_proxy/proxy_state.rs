//! What a proxy and its connections share: rules, recorded writes, open streams.

use parking_lot::{Mutex, MutexGuard};

use crate::net::fault_proxy::rule::{ActiveRule, ApiCall, ProxyFault};
use crate::net::fault_proxy::streams::Streams;

#[derive(Debug, Default)]
pub(super) struct ProxyState {
    rules: Mutex<Vec<ActiveRule>>,
    writes: Mutex<Vec<RecordedWrite>>,
    pub(super) streams: Streams,
}

/// A write call that went through the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedWrite {
    /// The call.
    pub call: ApiCall,
    /// The API server's status code; nothing if the call was not forwarded or not answered.
    pub answer: Option<u16>,
    /// Whether a fault was injected.
    pub faulty: bool,
}

impl ProxyState {
    pub(super) fn rules(&self) -> MutexGuard<'_, Vec<ActiveRule>> {
        self.rules.lock()
    }

    pub(super) fn writes(&self) -> MutexGuard<'_, Vec<RecordedWrite>> {
        self.writes.lock()
    }

    /// The fault to inject into a call.
    pub(super) fn inject(&self, call: &ApiCall) -> Option<ProxyFault> {
        let mut rules = self.rules();
        // Each rule counts all calls that match it, also those that an earlier rule handles.
        let due: Vec<bool> = rules.iter_mut().map(|rule| rule.is_due(call)).collect();
        let first = due.iter().position(|due| *due)?;
        Some(rules[first].inject())
    }
}
