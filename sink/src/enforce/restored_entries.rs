//! Entries that someone else deleted or edited, and that were written again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use job_handler_shared::{
    keys, names,
    policy::{parsed::Policy, reference::PolicyRef, set::PolicySet, status::OVER_LIMIT},
};
use tokio::time::Instant;

use crate::{
    enforce::{entry_writer::revision, webhook_entries::entry_names},
    model::{entry_state::EntryState, text::whole_seconds},
    notify::{
        recorder::{EventSpec, EventType, Recorder},
        refusal_event::policy_reference,
    },
};

/// The enforced policies whose entries were restored, and why.
#[derive(Debug)]
pub(crate) struct RestoredEntries {
    policies: Vec<PolicyRef>,
    why: String,
    at: Instant,
    timestamp: Timestamp,
}

impl RestoredEntries {
    /// `tampered` are names of entries, `deleted`: the whole configuration was.
    pub(crate) fn new(tampered: &[String], deleted: bool, policies: &PolicySet) -> Self {
        let timestamp = whole_seconds(Timestamp::now());
        let how = if deleted { "deleted" } else { "edited" };
        let why = format!(
            "ValidatingWebhookConfiguration {} was {how} by someone else (seen at {timestamp}) and is being restored; \
             Jobs created meanwhile were not checked, but count",
            keys::LIMITS_CONFIGURATION
        );
        let is_hit = |policy: &Policy| entry_names(policy).iter().any(|name| tampered.contains(name));
        let hit = policies.iter().filter(|policy| policy.enforced() && is_hit(policy));
        let policies = hit.map(|policy| policy.reference.clone()).collect();
        Self { policies, why, at: Instant::now(), timestamp }
    }

    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// The state in which the restored entries do not count as written.
    pub(crate) fn state(&self, policies: &PolicySet) -> EntryState {
        let mut written: BTreeMap<String, i64> = revision(policies).into_iter().collect();
        written.retain(|uid, _| !self.policies.iter().any(|policy| policy.uid == *uid));
        EntryState { written, error: Some(self.why.clone()) }
    }

    /// Writes one Event per policy.
    pub(crate) async fn publish(&self, recorder: &Recorder, policies: &PolicySet) {
        for policy in policies.iter().filter(|policy| self.policies.contains(&policy.reference)) {
            let policy = &policy.reference;
            let hash = names::short_hash([policy.uid.as_str(), &self.timestamp.to_string()]);
            let event = EventSpec {
                namespace: policy.namespace.clone().unwrap_or_else(|| "default".to_owned()),
                name: names::object_name(
                    &policy.name,
                    &format!(".{hash}.{}", keys::REASON_LIMIT_ENTRY_MISSING.to_ascii_lowercase()),
                ),
                event_type: EventType::Warning,
                reason: keys::REASON_LIMIT_ENTRY_MISSING,
                action: "Restored",
                note: format!("{}; condition {OVER_LIMIT} reports exceeded limits", self.why),
                regarding: policy_reference(policy),
                related: None,
            };
            if let Err(error) = recorder.publish(&event).await {
                tracing::warn!(%policy, "cannot write the Event about a restored webhook entry: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::enforce::webhook_entries::tests::namespaced;

    #[test]
    fn a_policy_with_a_tampered_entry_does_not_count_as_written() {
        let limit = json!({"limits": [{"name": "l", "maxActiveJobs": 1}]});
        let set = PolicySet::new([namespaced("a", "ci", limit.clone()), namespaced("b", "ci", limit)]);
        for name in ["b.ci.jobpolicy.limit.job-handler.io", "b.ci.jobpolicy.update.limit.job-handler.io"] {
            let state = RestoredEntries::new(&[name.to_owned()], false, &set).state(&set);
            assert_eq!(state.written.keys().collect::<Vec<_>>(), ["ci-a"]);
            assert!(state.error.unwrap().contains("was edited by someone"));
        }
    }
}
