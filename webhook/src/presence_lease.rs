//! The Lease of this replica: it lives, and these policy revisions are what it enforces.
//!
//! The sink calls a policy Ready once every live replica says so. Therefore a replica whose Lease has run out no longer
//! decides about limits ([`Liveness`]): nobody waits for what it enforces. And a policy by whose limits it cannot decide
//! yet ([`Withholding`]) it does not say to enforce.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{keys, policy::set::PolicySet, process::admin::ReadyHandle};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::{policies::Policies, reflector::causes};

/// Field manager of server-side apply.
const MANAGER: &str = "job-handler-webhook";
const RENEW: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Of the 15 s that others believe in the Lease, the last 2 are left out: clocks differ, and answers travel.
const TRUST: Duration = Duration::from_secs(keys::WEBHOOK_LEASE_SECONDS as u64 - 2);

/// Whether the Lease is held; clones share it.
#[derive(Clone, Debug)]
pub struct Liveness {
    start: Instant,
    /// Milliseconds since `start` of the last renewal, plus one; 0 = never.
    renewed: Arc<AtomicU64>,
    always: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { start: Instant::now(), renewed: Arc::default(), always: false }
    }
}

impl Liveness {
    /// Without a Lease, for tests and benchmarks.
    pub fn always() -> Self {
        Self { always: true, ..Self::default() }
    }

    /// Whether the others still count on this replica.
    pub fn is_live(&self) -> bool {
        let renewed = self.renewed.load(Ordering::Acquire);
        self.always || (renewed > 0 && self.elapsed().saturating_sub(renewed) < TRUST.as_millis() as u64)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// By which policies' limits nothing can be decided now.
pub trait Withholding: Send + Sync {
    /// Those of `policies`, by uid, and why. None = that is not known yet.
    fn withheld(&self, policies: &PolicySet) -> Option<BTreeMap<String, String>>;
    /// Tells that it may be different now.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Keeps the Lease of `replica` until `shutdown`; then it is let go by [`Keeper::release`].
pub struct Keeper {
    api: Api<Lease>,
    name: String,
    holder: String,
    policies: Policies,
    withholding: Arc<dyn Withholding>,
    liveness: Liveness,
    ready: ReadyHandle,
}

/// What a renewal says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewed {
    /// Every policy is enforced.
    Whole,
    /// Some are withheld.
    InPart,
    /// It was not made: nobody knows yet which are.
    Not,
}

impl Keeper {
    /// Of the replica of this name.
    pub fn new(
        client: Client,
        namespace: &str,
        replica: &str,
        policies: Policies,
        withholding: Arc<dyn Withholding>,
        liveness: Liveness,
        ready: ReadyHandle,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: format!("{}{replica}", keys::WEBHOOK_LEASE_PREFIX),
            holder: replica.to_owned(),
            policies,
            withholding,
            liveness,
            ready,
        }
    }

    /// Renews every five seconds, and at once when a policy changes or ledgers went.
    pub async fn run(&self, shutdown: CancellationToken) {
        let (mut changes, mut others) = (self.policies.changes(), self.withholding.changes());
        let mut told: Option<String> = None;
        let acquired = Timestamp::now();
        while !shutdown.is_cancelled() {
            let pause = if !self.policies.synced() {
                self.ready.not_ready("waits for the policies");
                RENEW
            } else {
                match self.renew(acquired).await {
                    Ok(Renewed::Not) => {
                        self.ready.not_ready("waits for the JobLedgers");
                        RENEW
                    }
                    Ok(renewed) => {
                        self.ready.ready();
                        if told.take().is_some() {
                            tracing::info!(lease = %self.name, "renewed again");
                        }
                        // What is withheld comes by itself.
                        if renewed == Renewed::InPart { RETRY } else { RENEW }
                    }
                    Err(why) => {
                        if !self.liveness.is_live() {
                            self.ready.not_ready(&why);
                        }
                        if told.as_ref() != Some(&why) {
                            tracing::warn!(lease = %self.name, "cannot renew, trying again: {why}");
                            told = Some(why);
                        }
                        RETRY
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = changes.changed() => {}
                Ok(()) = others.changed() => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Takes the Lease away, once nothing is answered any more.
    pub async fn release(&self) {
        let params = DeleteParams::default();
        let delete = self.api.delete(&self.name, &params);
        match tokio::time::timeout(CALL_TIMEOUT, delete).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            Ok(Err(error)) => {
                tracing::warn!(lease = %self.name, "left behind, it runs out by itself: {}", causes(&error));
            }
            Err(_) => tracing::warn!(lease = %self.name, "left behind, it runs out by itself: no answer"),
        }
    }

    async fn renew(&self, acquired: Timestamp) -> Result<Renewed, String> {
        // What is true when the call begins.
        let begun = self.liveness.elapsed();
        let policies = self.policies.current().clone();
        let Some(withheld) = self.withholding.withheld(&policies) else { return Ok(Renewed::Not) };
        let enforces: BTreeMap<&str, i64> = policies
            .iter()
            .map(|policy| (&*policy.reference.uid, policy.generation))
            .filter(|(uid, _)| !withheld.contains_key(*uid))
            .collect();
        let renewed = if withheld.is_empty() { Renewed::Whole } else { Renewed::InPart };
        let enforces = serde_json::to_string(&enforces).map_err(|error| error.to_string())?;
        let withheld = serde_json::to_string(&withheld).map_err(|error| error.to_string())?;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.name,
                "labels": {keys::COMPONENT: keys::COMPONENT_WEBHOOK},
                "annotations": {keys::ENFORCES: enforces, keys::WITHHELD: withheld},
            },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": keys::WEBHOOK_LEASE_SECONDS,
                "acquireTime": MicroTime(acquired),
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        let patch = Patch::Apply(&lease);
        let params = PatchParams::apply(MANAGER).force();
        let call = self.api.patch(&self.name, &params, &patch);
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(_)) => {
                self.liveness.renewed.store(begun + 1, Ordering::Release);
                Ok(renewed)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(format!(
                "no right to write Leases: apply the webhook's roles (manifests/base) and bind them to this \
                 ServiceAccount: {}",
                status.message
            )),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                Err(format!("{}. Does the namespace (--namespace) exist?", status.message))
            }
            Ok(Err(error)) => Err(causes(&error)),
            Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }
}
