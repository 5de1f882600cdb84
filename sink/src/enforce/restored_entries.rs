//! Entries that someone else deleted or edited, and that were written again.

use jiff::Timestamp;
use job_handler_shared::{
    keys, names,
    policy::{reference::PolicyRef, status::OVER_LIMIT},
};
use tokio::time::Instant;

use crate::{
    model::{entry_state::EntryFailure, text::whole_seconds},
    notify::{
        recorder::{EventSpec, EventType, Recorder},
        refusal_event::policy_reference,
    },
};

/// Entries of a policy that were correct and that someone else changed.
#[derive(Clone, Debug)]
pub(crate) struct TamperedEntries {
    pub(crate) policy: PolicyRef,
    /// The number of their configuration.
    pub(crate) configuration: usize,
    /// The whole configuration was deleted.
    pub(crate) deleted: bool,
}

/// The policies whose entries were restored, and why.
#[derive(Clone, Debug)]
pub(crate) struct RestoredEntries {
    policies: Vec<(PolicyRef, String)>,
    at: Instant,
    timestamp: Timestamp,
}

impl RestoredEntries {
    pub(crate) fn new(tampered: Vec<TamperedEntries>) -> Self {
        let timestamp = whole_seconds(Timestamp::now());
        let with_reason = |TamperedEntries { policy, configuration, deleted }| {
            let how = if deleted { "deleted" } else { "edited" };
            let why = format!(
                "ValidatingWebhookConfiguration {} was {how} by someone else (seen at {timestamp}) and is being restored; \
                 Jobs created meanwhile were not checked, but count",
                names::limits_configuration(configuration)
            );
            tracing::warn!(%policy, "webhook entries: {why}");
            (policy, why)
        };
        let policies = tampered.into_iter().map(with_reason).collect();
        Self { policies, at: Instant::now(), timestamp }
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// Why the restored entries do not count as written, by policy.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&PolicyRef, EntryFailure)> {
        self.policies.iter().map(|(policy, why)| (policy, EntryFailure::missing(why)))
    }

    /// Writes one Event per policy.
    pub(crate) async fn publish(self, recorder: Recorder) {
        for (policy, why) in &self.policies {
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
                note: format!("{why}; condition {OVER_LIMIT} reports exceeded limits"),
                regarding: policy_reference(policy),
                related: None,
            };
            if let Err(error) = recorder.publish(&event).await {
                tracing::warn!(%policy, "cannot write the Event about a restored webhook entry: {error}");
            }
        }
    }
}
