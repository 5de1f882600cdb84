//! Watches results in Secrets while the right to do so is granted.

use std::{convert::Infallible, time::Duration};

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
    secret_access::{OVERLAY, VERBS},
};

/// Pause between two checks of the rights, before jitter.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Checks the rights until it is dropped, and watches results in Secrets while they are granted.
pub(crate) async fn run(context: Context, ready: ReadyHandle) -> Infallible {
    let secrets = &context.store.secrets;
    loop {
        match missing_verb(&context.client).await {
            Ok(None) => {
                if secrets.allow() {
                    tracing::info!("results may be stored in Secrets");
                }
                tokio::select! {
                    () = reflectors::results_in::<Secret>(&context, &ready, StorageKind::Secret) => {}
                    () = revoked(&context.client) => {}
                }
                // Results that were seen stay known, so that their Jobs are not harvested again.
                continue;
            }
            Ok(Some(verb)) => {
                let why = format!("the sink has no right to {verb} Secrets: apply {OVERLAY}");
                if secrets.deny(why) {
                    tracing::info!(verb, "results are not stored in Secrets; to allow it, apply {OVERLAY}");
                }
                ready.set_ready();
            }
            // Until the first answer, nothing may act as if there were no results in Secrets.
            Err(error) if secrets.is_unknown() => ready.set_not_ready(error.to_string()),
            Err(error) => tracing::debug!("cannot check the rights on Secrets: {error}"),
        }
        tokio::time::sleep(jitter(CHECK_INTERVAL * 3 / 2)).await;
    }
}

/// Returns once a right is revoked.
async fn revoked(client: &Client) {
    loop {
        tokio::time::sleep(jitter(CHECK_INTERVAL * 3)).await;
        if let Ok(Some(_)) = missing_verb(client).await {
            return;
        }
    }
}

/// Returns the first verb that is not granted.
async fn missing_verb(client: &Client) -> Result<Option<&'static str>, ApiError> {
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
        match call("check the own rights on Secrets", api.create(&PostParams::default(), &review)).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => return Ok(Some(verb)),
            Err(error) if error.is_denied() => return Ok(Some(verb)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
