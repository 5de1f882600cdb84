//! How long other validating webhooks may keep a Job waiting: the apiserver asks all of them at the same time, and stores the
//! Job when the last one has answered.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{keys, names};
use k8s_openapi::api::admissionregistration::v1::{
    RuleWithOperations, ValidatingWebhook, ValidatingWebhookConfiguration,
};
use kube::{ResourceExt, core::ObjectMeta};
use parking_lot::Mutex;

use crate::{cache::reflector::WatchHandler, ledger::attempt_age::Clock};

/// The longest timeout of a webhook (`timeoutSeconds` is at most 30, `ValidateValidatingWebhookConfiguration`).
const LONGEST: Duration = Duration::from_secs(30);
/// The timeout of a webhook that names none.
const DEFAULT: Duration = Duration::from_secs(10);
/// No request takes longer than this, so that what was removed earlier keeps none waiting.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The timeouts of the webhooks that see Jobs, without our own. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct OtherWebhooks(Arc<Mutex<KnownTimeouts>>);

/// Timeouts by configuration. Pure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KnownTimeouts {
    /// Since when no change was missed.
    since: Option<Instant>,
    /// The longest timeout of each configuration that has one.
    current: BTreeMap<String, Duration>,
    /// Timeouts of webhooks that are gone or have another one now, and until when they matter.
    former: Vec<(Duration, Instant)>,
}

/// Applies the events of the configurations' watch.
pub struct WebhookWatchHandler {
    /// Receives the timeouts.
    pub webhooks: OtherWebhooks,
    /// The clock of the attempts.
    pub clock: Clock,
}

impl OtherWebhooks {
    /// See [`KnownTimeouts::longest_wait`].
    pub(crate) fn longest_wait(&self, now: Instant) -> Duration {
        self.0.lock().longest_wait(now)
    }
}

impl KnownTimeouts {
    /// The longest that a request of the last minute may have waited for another webhook: the longest timeout there can be
    /// while that is not known, and for a minute after.
    pub fn longest_wait(&self, now: Instant) -> Duration {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) < REMEMBERED) {
            return LONGEST;
        }
        let former = self.former.iter().filter(|(_, until)| now < *until).map(|(timeout, _)| *timeout);
        self.current.values().copied().chain(former).max().unwrap_or_default()
    }

    /// These are all configurations with their timeouts.
    pub fn replace(&mut self, all: Vec<(String, Option<Duration>)>, now: Instant) {
        let gone: Vec<String> = self.current.keys().cloned().collect();
        for name in gone.iter().filter(|name| all.iter().all(|(other, _)| other != *name)) {
            self.set(name, None, now);
        }
        for (name, timeout) in all {
            self.set(&name, timeout, now);
        }
        self.since.get_or_insert(now);
    }

    /// The longest timeout of one configuration; `None` if it has none that counts, or is gone.
    pub fn set(&mut self, configuration: &str, timeout: Option<Duration>, now: Instant) {
        let before = match timeout {
            Some(timeout) => self.current.insert(configuration.to_owned(), timeout),
            None => self.current.remove(configuration),
        };
        self.former.retain(|(_, until)| now < *until);
        if let Some(before) = before.filter(|before| timeout.is_none_or(|timeout| timeout < *before)) {
            self.former.push((before, now + REMEMBERED));
        }
    }
}

impl WatchHandler<ValidatingWebhookConfiguration> for WebhookWatchHandler {
    fn begin(&mut self) {
        // What came and went since the last event is not known.
        self.webhooks.0.lock().since = None;
    }

    fn listed(&mut self, object: ValidatingWebhookConfiguration) -> Option<ValidatingWebhookConfiguration> {
        // Nothing else is kept: a configuration may have half a megabyte, and its managed fields as much.
        let webhooks = object.webhooks.map(|all| all.into_iter().map(without_client).collect());
        let metadata = ObjectMeta { name: object.metadata.name, ..ObjectMeta::default() };
        Some(ValidatingWebhookConfiguration { metadata, webhooks })
    }

    fn replace(&mut self, all: Vec<ValidatingWebhookConfiguration>) {
        let now = self.clock.now();
        let all = all.iter().map(|configuration| (configuration.name_any(), longest(configuration)));
        self.webhooks.0.lock().replace(all.collect(), now);
    }

    fn apply(&mut self, object: ValidatingWebhookConfiguration) {
        let now = self.clock.now();
        self.webhooks.0.lock().set(&object.name_any(), longest(&object), now);
    }

    fn delete(&mut self, object: ValidatingWebhookConfiguration) {
        let now = self.clock.now();
        self.webhooks.0.lock().set(&object.name_any(), None, now);
    }
}

fn without_client(webhook: ValidatingWebhook) -> ValidatingWebhook {
    let ValidatingWebhook { rules, timeout_seconds, .. } = webhook;
    ValidatingWebhook { rules, timeout_seconds, ..ValidatingWebhook::default() }
}

/// The longest timeout of a configuration's webhooks that see Jobs; none of ours. Their selectors and conditions are not
/// looked at: they may change what they select with every request.
fn longest(configuration: &ValidatingWebhookConfiguration) -> Option<Duration> {
    // The number of our own entries that see a Job is known from the policies.
    let name = configuration.name_any();
    if (0..keys::LIMITS_CONFIGURATIONS).any(|n| names::limits_configuration(n) == name) {
        return None;
    }
    let webhooks = configuration.webhooks.iter().flatten();
    let seeing = webhooks.filter(|webhook| webhook.rules.iter().flatten().any(sees_jobs));
    seeing
        .map(|webhook| {
            let seconds = webhook.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            seconds.map_or(DEFAULT, Duration::from_secs).min(LONGEST)
        })
        .max()
}

/// Whether a rule matches creates or updates of Jobs (`k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules`).
fn sees_jobs(rule: &RuleWithOperations) -> bool {
    let has = |values: &Option<Vec<String>>, names: &[&str]| {
        values.iter().flatten().any(|value| names.contains(&value.as_str()))
    };
    has(&rule.api_groups, &["*", "batch"])
        && has(&rule.resources, &["*", "*/*", "jobs"])
        && has(&rule.operations, &["*", "CREATE", "UPDATE"])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn configuration(name: &str, resource: &str, timeout: Value) -> ValidatingWebhookConfiguration {
        let rules = json!([{"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE"]}]);
        let webhook = json!({"name": "x.y.z", "rules": rules, "timeoutSeconds": timeout, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://x/secret"}});
        serde_json::from_value(json!({"metadata": {"name": name}, "webhooks": [webhook]})).unwrap()
    }

    fn handler() -> WebhookWatchHandler {
        WebhookWatchHandler { webhooks: OtherWebhooks::default(), clock: Clock::default() }
    }

    fn wait(handler: &WebhookWatchHandler) -> u64 {
        handler.webhooks.longest_wait(handler.clock.now()).as_secs()
    }

    #[test]
    fn what_is_not_known_may_take_half_a_minute() {
        let mut handler = handler();
        assert_eq!(wait(&handler), 30);
        handler.replace(vec![]);
        assert_eq!(wait(&handler), 30, "one that was removed a moment ago");
        handler.clock.advance(REMEMBERED);
        assert_eq!(wait(&handler), 0);
    }

    #[test]
    fn what_came_and_went_between_two_watches_is_not_known() {
        let mut handler = handler();
        handler.replace(vec![]);
        handler.clock.advance(REMEMBERED);
        handler.begin();
        assert_eq!(wait(&handler), 30);
        handler.replace(vec![]);
        assert_eq!(wait(&handler), 30);
        handler.clock.advance(REMEMBERED);
        assert_eq!(wait(&handler), 0);
    }

    #[test]
    fn only_webhooks_that_see_jobs_count_and_ours_do_not() {
        let mut handler = handler();
        handler.replace(vec![
            configuration("pods", "pods", json!(29)),
            configuration("job-handler-limits", "jobs", json!(10)),
            configuration("job-handler-limits-7", "jobs", json!(10)),
        ]);
        handler.clock.advance(REMEMBERED);
        assert_eq!(wait(&handler), 0);
        handler.apply(configuration("job-handler-limits-of-others", "jobs", json!(6)));
        assert_eq!(wait(&handler), 6);
        handler.apply(configuration("all", "*", json!(7)));
        assert_eq!(wait(&handler), 7);
        handler.apply(configuration("jobs", "jobs", Value::Null));
        assert_eq!(wait(&handler), 10);
    }

    #[test]
    fn a_webhook_that_is_removed_or_gets_less_time_counts_for_a_minute_more() {
        let mut handler = handler();
        handler
            .replace(vec![configuration("slow", "jobs", json!(25)), configuration("fast", "jobs", json!(3))]);
        handler.clock.advance(REMEMBERED);
        handler.apply(configuration("slow", "jobs", json!(5)));
        assert_eq!(wait(&handler), 25);
        handler.clock.advance(REMEMBERED);
        assert_eq!(wait(&handler), 5);
        handler.delete(configuration("slow", "jobs", json!(5)));
        handler.replace(vec![]);
        assert_eq!(wait(&handler), 5);
        handler.clock.advance(REMEMBERED);
        assert_eq!(wait(&handler), 0);
    }
}
