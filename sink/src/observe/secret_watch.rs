//! Watches results in Secrets while the right to do so is granted.

use std::time::Duration;

use job_handler_shared::{
    kube::error::{ApiError, call},
    process::{admin::ReadyHandle, jitter::jitter},
    result::storage_kind::StorageKind,
};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::Secret,
};
use kube::{Api, Client, api::PostParams};

use crate::observe::{
    context::Context,
    reflectors,
    secret_access::{OVERLAY, Standing, VERBS},
};

/// How often it is asked whether what is missing is there now, and whether what is there still is.
const EVERY: Duration = Duration::from_secs(10);

/// Asks for the rights, and watches the results in Secrets while they are there; for ever.
pub async fn keep(context: Context, ready: ReadyHandle) {
    let secrets = &context.store.secrets;
    loop {
        match missing(&context.client).await {
            Ok(None) => {
                if secrets.allow() {
                    tracing::info!("results may be held in Secrets");
                    context.store.secrets_changed();
                }
                tokio::select! {
                    () = reflectors::results_in::<Secret>(&context, &ready, StorageKind::Secret) => {}
                    () = lost(&context.client) => {}
                }
                // Those that are known stay known: nobody harvests their Jobs again.
                continue;
            }
            Ok(Some(verb)) => {
                let why = format!("the sink has no right to {verb} Secrets: apply {OVERLAY}");
                if secrets.forbid(why) {
                    tracing::info!(
                        verb,
                        "results cannot be held in Secrets: apply {OVERLAY} where they are to be"
                    );
                    context.store.secrets_changed();
                }
                ready.set_ready();
            }
            // What is known stands; before the first answer nobody may act as if there were no such results.
            Err(error) if *secrets.lock() == Standing::Unknown => ready.set_not_ready(error.to_string()),
            Err(error) => tracing::debug!("the rights on Secrets: {error}"),
        }
        tokio::time::sleep(jitter(EVERY * 3 / 2)).await;
    }
}

/// Ends when a right is there no more.
pub(crate) async fn lost(client: &Client) {
    loop {
        tokio::time::sleep(jitter(EVERY * 3)).await;
        if let Ok(Some(_)) = missing(client).await {
            return;
        }
    }
}

/// The first verb that is not granted.
pub(crate) async fn missing(client: &Client) -> Result<Option<&'static str>, ApiError> {
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    for verb in VERBS {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    resource: Some("secrets".to_owned()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        match call("ask for the own rights on Secrets", api.create(&PostParams::default(), &review)).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            // Who may not even ask is one of those that may not.
            Ok(_) => return Ok(Some(verb)),
            Err(error) if error.is_denied() => return Ok(Some(verb)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
