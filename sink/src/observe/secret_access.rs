//! Whether this sink may hold results in Secrets: a right that the base install does not give, and that can come and go
//! while it runs.
//!
//! The apiserver is asked for each verb by itself (`SelfSubjectAccessReview`, which every authenticated user may make by
//! the cluster's own role `system:basic-user`), for the Secrets of all namespaces: with half of the rights a result could
//! be written and never found again. Where all are there, the results in Secrets are watched as those in ConfigMaps are.

use std::{sync::Arc, time::Duration};

use job_handler_shared::process::admin::ReadyHandle;
use job_handler_shared::process::jitter::jitter;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::Secret,
};
use kube::{Api, Client, api::PostParams};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    observe::reflectors::{self, Context},
    result::storage::Kind,
};
use job_handler_shared::kube::error::{ApiError, call};

/// What results in Secrets take: the same as those in ConfigMaps.
pub const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
/// What gives the rights.
pub const OVERLAY: &str = "manifests/overlays/secrets";
/// How often it is asked whether what is missing is there now, and whether what is there still is.
const EVERY: Duration = Duration::from_secs(10);

/// What is known about it; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Arc<Mutex<Standing>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Unknown,
    May,
    MayNot(String),
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        // Every change is one assignment.
        self.0.lock()
    }

    /// Whether results may be held in Secrets, and those that are be read.
    pub fn may(&self) -> bool {
        *self.lock() == Standing::May
    }

    /// Why they may not; nothing while that is not known.
    pub fn why_not(&self) -> Option<String> {
        match &*self.lock() {
            Standing::MayNot(why) => Some(why.clone()),
            Standing::Unknown | Standing::May => None,
        }
    }

    /// They may.
    pub fn allow(&self) -> bool {
        self.set(Standing::May)
    }

    /// They may not, and why.
    pub fn forbid(&self, why: String) -> bool {
        self.set(Standing::MayNot(why))
    }

    fn set(&self, now: Standing) -> bool {
        let mut known = self.lock();
        let news = *known != now;
        *known = now;
        news
    }
}

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
                    () = reflectors::results_in::<Secret>(&context, &ready, Kind::Secret) => {}
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
                ready.ready();
            }
            // What is known stands; before the first answer nobody may act as if there were no such results.
            Err(error) if *secrets.lock() == Standing::Unknown => ready.not_ready(error.to_string()),
            Err(error) => tracing::debug!("the rights on Secrets: {error}"),
        }
        tokio::time::sleep(jitter(EVERY * 3 / 2)).await;
    }
}

/// Ends when a right is there no more.
async fn lost(client: &Client) {
    loop {
        tokio::time::sleep(jitter(EVERY * 3)).await;
        if let Ok(Some(_)) = missing(client).await {
            return;
        }
    }
}

/// The first verb that is not granted.
async fn missing(client: &Client) -> Result<Option<&'static str>, ApiError> {
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
            Ok(_) | Err(ApiError::Rights { .. }) => return Ok(Some(verb)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
