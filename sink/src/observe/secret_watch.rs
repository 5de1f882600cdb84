//! Watches results in Secrets while the right to do so is granted.

use std::{convert::Infallible, time::Duration};

use futures::future::join_all;
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

use crate::{
    model::served_namespaces::NamespaceScope,
    observe::{
        context::Context,
        reflectors,
        secret_access::{OVERLAY, VERBS},
    },
};

/// Pause between two checks of the rights, before jitter.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Checks the rights until it is dropped, and watches results in Secrets while they are granted in all these scopes.
pub(crate) async fn run(context: Context, scopes: Vec<(NamespaceScope, ReadyHandle)>) -> Infallible {
    let secrets = &context.store.secrets;
    let all_ready = || scopes.iter().for_each(|(_, ready)| ready.set_ready());
    loop {
        match missing_right(&context.client, &scopes).await {
            Ok(None) => {
                if secrets.allow() {
                    tracing::info!("results may be stored in Secrets");
                }
                let watches = scopes.iter().map(|(scope, ready)| {
                    reflectors::results_in::<Secret>(&context, scope, ready, StorageKind::Secret)
                });
                tokio::select! {
                    _ = join_all(watches) => {}
                    () = revoked(&context.client, &scopes) => {}
                }
                // Results that were seen stay known, so that their Jobs are not harvested again.
                continue;
            }
            Ok(Some(right)) => {
                let why = format!("the sink has no right to {right}: apply {OVERLAY}");
                if secrets.deny(why) {
                    tracing::info!(right, "results are not stored in Secrets; to allow it, apply {OVERLAY}");
                }
                all_ready();
            }
            // Until the first answer, nothing may act as if there were no results in Secrets.
            Err(error) if secrets.is_unknown() => {
                scopes.iter().for_each(|(_, ready)| ready.set_not_ready(error.to_string()));
            }
            Err(error) => tracing::debug!("cannot check the rights on Secrets: {error}"),
        }
        tokio::time::sleep(jitter(CHECK_INTERVAL * 3 / 2)).await;
    }
}

/// Returns once a right is revoked.
async fn revoked(client: &Client, scopes: &[(NamespaceScope, ReadyHandle)]) {
    loop {
        tokio::time::sleep(jitter(CHECK_INTERVAL * 3)).await;
        if let Ok(Some(_)) = missing_right(client, scopes).await {
            return;
        }
    }
}

/// Returns the first right that is not granted, such as `get Secrets`.
async fn missing_right(
    client: &Client,
    scopes: &[(NamespaceScope, ReadyHandle)],
) -> Result<Option<String>, ApiError> {
    for (scope, _) in scopes {
        for verb in VERBS {
            if !is_granted(client, scope, verb).await? {
                return Ok(Some(format!("{verb} {}", scope.name_of("Secrets"))));
            }
        }
    }
    Ok(None)
}

async fn is_granted(client: &Client, scope: &NamespaceScope, verb: &str) -> Result<bool, ApiError> {
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: scope.namespace().map(str::to_owned),
                resource: Some("secrets".to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    match call("check the own rights on Secrets", api.create(&PostParams::default(), &review)).await {
        Ok(answer) => Ok(answer.status.is_some_and(|status| status.allowed)),
        Err(error) if error.is_denied() => Ok(false),
        Err(error) => Err(error),
    }
}
