//! Watches the two webhook configurations, which anyone with the right can change.

use futures::{Stream, StreamExt, future::ready, stream};
use job_handler_shared::{keys, kube::watch};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client,
    runtime::watcher::{Config, Event, watcher},
};

/// Yields an item for each change.
pub(crate) fn configuration_changes(client: &Client) -> impl Stream<Item = ()> + use<> {
    let config = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
    let validating = watch::events(
        watcher(
            Api::<ValidatingWebhookConfiguration>::all(client.clone()),
            config(keys::LIMITS_CONFIGURATION),
        ),
        "validatingwebhookconfigurations.admissionregistration.k8s.io",
    );
    let mutating = watch::events(
        watcher(
            Api::<MutatingWebhookConfiguration>::all(client.clone()),
            config(keys::MUTATING_CONFIGURATION),
        ),
        "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    );
    stream::select(changes(validating), changes(mutating))
}

fn changes<K>(events: impl Stream<Item = Event<K>>) -> impl Stream<Item = ()> {
    events.filter_map(|event| ready(matches!(event, Event::Apply(_) | Event::Delete(_)).then_some(())))
}
