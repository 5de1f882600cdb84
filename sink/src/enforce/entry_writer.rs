//! Writes the webhook entries of the policies into the ValidatingWebhookConfiguration `job-handler-limits`, and restores
//! them when someone else changes them.

use std::{collections::BTreeMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    policy::set::PolicySet,
    process::{failure_log::FailureLog, jitter::jitter},
};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhook, ValidatingWebhookConfiguration,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::{sync::watch, time::Instant};

use crate::{
    enforce::{
        configuration_watch::configuration_changes,
        restored_entries::RestoredEntries,
        webhook_entries::{build, client_config, tampered},
    },
    model::{entry_state::EntryState, policy_entry::is_excluded},
    notify::recorder::Recorder,
    observe::store::Store,
};

/// A round without any change, in case a watch missed one.
pub(crate) const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// How long a policy stays not `Ready` after its entry was restored: the apiservers need a moment to load our write,
/// and users see that there was a gap.
const NOT_READY_TIME: Duration = Duration::from_secs(3);

/// Why the entries are not as wanted.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{0}")]
    NoClientConfig(String),
    #[error("ValidatingWebhookConfiguration {} differs from what was written", keys::LIMITS_CONFIGURATION)]
    ReadBack,
}

/// The configuration as it is, and the entries that it should have.
struct Comparison {
    current: Option<ValidatingWebhookConfiguration>,
    wanted: Vec<ValidatingWebhook>,
}

impl Comparison {
    fn entries(&self) -> &[ValidatingWebhook] {
        self.current.as_ref().and_then(|current| current.webhooks.as_deref()).unwrap_or_default()
    }

    fn is_equal(&self) -> bool {
        self.entries() == self.wanted
    }
}

/// Writes the entries until it is dropped: on every change of a policy or of the two webhook configurations, and every
/// [`MAX_INTERVAL`].
pub(crate) async fn run(
    client: Client,
    store: Store,
    own_namespace: Arc<str>,
    recorder: Recorder,
    state: watch::Sender<EntryState>,
) -> Infallible {
    let mut changes = store.changes();
    let mut touches = pin!(configuration_changes(&client));
    let mut failures = FailureLog::default();
    // The entries as last seen or written correctly.
    let mut correct: Vec<ValidatingWebhook> = Vec::new();
    let mut restored: Option<RestoredEntries> = None;
    loop {
        let policies = store.policies();
        let revision = revision(&policies);
        let outcome = match compare(&client, &policies, &own_namespace).await {
            Err(error) => Err(error),
            Ok(comparison) if comparison.is_equal() => Ok(comparison.wanted),
            Ok(comparison) => {
                let tampered = tampered(&correct, &comparison.wanted, comparison.entries());
                let deleted = comparison.current.is_none();
                let now = (!tampered.is_empty()).then(|| RestoredEntries::new(&tampered, deleted, &policies));
                if let Some(now) = &now {
                    state.send_replace(now.state(&policies));
                    tracing::warn!("webhook entries: {}", now.why());
                }
                let written = write(&client, comparison).await;
                if let Some(now) = now {
                    now.publish(&recorder, &policies).await;
                    restored = Some(now);
                }
                written
            }
        };
        restored = restored.filter(|restored| restored.at().elapsed() < NOT_READY_TIME);
        let new = match outcome {
            Ok(wanted) => {
                failures.succeeded();
                correct = wanted;
                let written = || EntryState { written: revision.iter().cloned().collect(), error: None };
                restored.as_ref().map_or_else(written, |restored| restored.state(&policies))
            }
            Err(error) => {
                let error = error.to_string();
                if failures.is_due(&error) {
                    tracing::warn!("cannot write the webhook entries: {error}; retrying");
                }
                EntryState { written: BTreeMap::new(), error: Some(error) }
            }
        };
        let pause = if new.error.is_none() { MAX_INTERVAL } else { jitter(Duration::from_secs(1)) };
        state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
        tokio::time::sleep(MIN_INTERVAL).await;
        let end = Instant::now() + pause;
        // The store also signals changes of Jobs: only another set of policies is a reason to compare.
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => break,
                Some(()) = touches.next() => break,
                Ok(()) = changes.changed() => {
                    if revision != self::revision(&store.policies()) {
                        break;
                    }
                }
            }
        }
    }
}

/// Uids and generations of the policies.
pub(crate) fn revision(policies: &PolicySet) -> Vec<(String, i64)> {
    policies.iter().map(|policy| (policy.reference.uid.clone(), policy.generation)).collect()
}

async fn compare(
    client: &Client,
    policies: &PolicySet,
    own_namespace: &str,
) -> Result<Comparison, EntryError> {
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let limited = policies.iter().any(|p| p.has_limits() && !is_excluded(p, own_namespace));
    let what = format!("get validatingwebhookconfiguration {}", keys::LIMITS_CONFIGURATION);
    let current = call(&what, api.get_opt(keys::LIMITS_CONFIGURATION)).await?;
    let wanted = if limited {
        let what = format!("get mutatingwebhookconfiguration {}", keys::MUTATING_CONFIGURATION);
        let found = call(&what, mutating.get_opt(keys::MUTATING_CONFIGURATION)).await?;
        build(policies, &client_config(found.as_ref()).map_err(EntryError::NoClientConfig)?, own_namespace)
    } else {
        Vec::new()
    };
    Ok(Comparison { current, wanted })
}

async fn write(client: &Client, comparison: Comparison) -> Result<Vec<ValidatingWebhook>, EntryError> {
    let Comparison { current, wanted } = comparison;
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let version = current.as_ref().and_then(|current| current.metadata.resource_version.clone());
    let mut metadata = current.map(|current| current.metadata).unwrap_or_default();
    metadata.managed_fields = None;
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("app.kubernetes.io/name".to_owned(), keys::APP.to_owned());
    let metadata = ObjectMeta { name: Some(keys::LIMITS_CONFIGURATION.to_owned()), ..metadata };
    let configuration = ValidatingWebhookConfiguration { metadata, webhooks: Some(wanted.clone()) };
    let what = format!("write validatingwebhookconfiguration {}", keys::LIMITS_CONFIGURATION);
    let params = PostParams::default();
    let answer = if version.is_some() {
        call(&what, api.replace(keys::LIMITS_CONFIGURATION, &params, &configuration)).await?
    } else {
        call(&what, api.create(&params, &configuration)).await?
    };
    tracing::info!(entries = wanted.len(), "wrote the webhook entries of the limits");
    if answer.webhooks.unwrap_or_default() == wanted { Ok(wanted) } else { Err(EntryError::ReadBack) }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::testing::{apiserver::Apiserver, policies::namespaced};
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::test_support::policy_entry;

    #[tokio::test(start_paused = true)]
    async fn a_deleted_or_changed_configuration_is_restored_without_polling() {
        const RESOURCE: &str = "validatingwebhookconfigurations";
        let apiserver = Apiserver::default();
        let service = json!({"name": "job-handler", "namespace": "ours", "path": "/mutate"});
        apiserver.put(
            "mutatingwebhookconfigurations",
            json!({"metadata": {"name": keys::MUTATING_CONFIGURATION}, "webhooks": [{
                "name": keys::MUTATING_WEBHOOK, "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"service": service, "caBundle": "YQ=="}}]}),
        );
        let store = Store::default();
        store.put_policy(policy_entry(
            1,
            namespaced("a", json!({"limits": [{"name": "l", "maxActiveJobs": 1}]})),
        ));
        let (sender, _state) = watch::channel(EntryState::default());
        let recorder = Recorder::new(apiserver.client(), "sink-0");
        tokio::spawn(run(apiserver.client(), store, "ours".into(), recorder, sender));
        let is_whole = || {
            let found = apiserver.get(RESOURCE, "", keys::LIMITS_CONFIGURATION);
            found.is_some_and(|found| found["webhooks"].as_array().is_some_and(|entries| !entries.is_empty()))
        };
        let restored = async || {
            let since = Instant::now();
            while !is_whole() {
                sleep(Duration::from_millis(10)).await;
            }
            since.elapsed()
        };
        restored().await;
        // At other moments between two rounds each time. Polling would take seconds in most of them.
        for n in 0..10 {
            sleep(3 * MAX_INTERVAL + MAX_INTERVAL * n / 10).await;
            if n % 2 == 0 {
                apiserver.remove(RESOURCE, "", keys::LIMITS_CONFIGURATION);
            } else {
                apiserver
                    .change(RESOURCE, "", keys::LIMITS_CONFIGURATION, |found| found["webhooks"] = json!([]));
            }
            let took = restored().await;
            assert!(took < Duration::from_secs(1), "{n}: {took:?}");
        }
    }
}
