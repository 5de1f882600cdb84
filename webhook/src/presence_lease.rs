//! The Lease of this replica. It lists the policy revisions that the replica enforces.
//!
//! The sink sets a policy's condition Ready when every live replica lists the current revision. Therefore a replica whose
//! Lease has expired stops deciding about limits ([`Liveness`]), and a replica does not list a policy whose limits it
//! cannot check yet ([`WithheldPolicies`]).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    kube::error::call_within,
    policy::set::PolicySet,
    process::{admin::ReadyHandle, failure_log::FailureLog},
};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::policies::Policies;

/// Field manager of server-side apply.
const FIELD_MANAGER: &str = "job-handler-webhook";
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How long this replica relies on its Lease: 2 s less than the Lease lasts, for clock drift and slow responses.
const VALIDITY: Duration = Duration::from_secs(keys::WEBHOOK_LEASE_SECONDS as u64 - 2);

/// Whether the Lease is valid. Clones share their state.
#[derive(Clone, Debug)]
pub struct Liveness {
    start: Instant,
    /// Time of the last renewal in milliseconds after `start`, plus one. 0: never renewed.
    renewed: Arc<AtomicU64>,
    always: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { start: Instant::now(), renewed: Arc::default(), always: false }
    }
}

impl Liveness {
    /// Always live, without a Lease, for tests and benchmarks.
    pub fn always() -> Self {
        Self { always: true, ..Self::default() }
    }

    /// Whether other processes still consider this replica alive.
    pub fn is_live(&self) -> bool {
        let renewed = self.renewed.load(Ordering::Acquire);
        self.always || (renewed > 0 && self.elapsed().saturating_sub(renewed) < VALIDITY.as_millis() as u64)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Lists the policies that this replica cannot enforce yet.
pub trait WithheldPolicies: Send + Sync {
    /// The uids of those policies, with the reason. None while this is not known.
    fn withheld(&self, policies: &PolicySet) -> Option<BTreeMap<String, String>>;
    /// Changes when [`Self::withheld`] may return something else.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Renews the Lease of this replica.
pub struct PresenceLease {
    api: Api<Lease>,
    name: String,
    holder: String,
    policies: Policies,
    withheld: Arc<dyn WithheldPolicies>,
    liveness: Liveness,
    ready: ReadyHandle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewal {
    /// The Lease lists every policy.
    Complete,
    /// The Lease lists some policies as withheld.
    Partial,
    /// The Lease was not written, because the withheld policies are not known yet.
    Skipped,
}

impl PresenceLease {
    /// The Lease of replica `replica`.
    pub fn new(
        client: Client,
        namespace: &str,
        replica: &str,
        policies: Policies,
        withheld: Arc<dyn WithheldPolicies>,
        liveness: Liveness,
        ready: ReadyHandle,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: format!("{}{replica}", keys::WEBHOOK_LEASE_PREFIX),
            holder: replica.to_owned(),
            policies,
            withheld,
            liveness,
            ready,
        }
    }

    /// Renews the Lease every five seconds, and at once when a policy or a ledger changes, until `shutdown`. Call
    /// [`Self::release`] afterwards.
    pub async fn run(&self, shutdown: CancellationToken) {
        let (mut policy_changes, mut ledger_changes) = (self.policies.changes(), self.withheld.changes());
        let mut failures = FailureLog::default();
        let acquired = Timestamp::now();
        while !shutdown.is_cancelled() {
            let pause = if !self.policies.synced() {
                self.ready.set_not_ready("waiting for the policies");
                RENEW_INTERVAL
            } else {
                match self.renew(acquired).await {
                    Ok(Renewal::Skipped) => {
                        self.ready.set_not_ready("waiting for the JobLedgers");
                        RENEW_INTERVAL
                    }
                    Ok(renewal) => {
                        self.ready.set_ready();
                        if failures.succeeded() {
                            tracing::info!(lease = %self.name, "renewed the Lease again");
                        }
                        // Withheld policies become enforceable without a change that would wake this loop.
                        if renewal == Renewal::Partial { RETRY_INTERVAL } else { RENEW_INTERVAL }
                    }
                    Err(error) => {
                        if !self.liveness.is_live() {
                            self.ready.set_not_ready(&error);
                        }
                        if failures.is_due(&error) {
                            tracing::warn!(lease = %self.name, "cannot renew the Lease, retrying: {error}");
                        }
                        RETRY_INTERVAL
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = policy_changes.changed() => {}
                Ok(()) = ledger_changes.changed() => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Deletes the Lease. Call it when no more reviews are answered.
    pub async fn release(&self) {
        let params = DeleteParams::default();
        let delete = self.api.delete(&self.name, &params);
        match call_within(CALL_TIMEOUT, "delete the Lease", delete).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(lease = %self.name, "{error}; it will expire"),
        }
    }

    async fn renew(&self, acquired: Timestamp) -> Result<Renewal, String> {
        // The Lease lists the policies as of the start of the call.
        let begun = self.liveness.elapsed();
        let policies = self.policies.current().clone();
        let Some(withheld) = self.withheld.withheld(&policies) else { return Ok(Renewal::Skipped) };
        let enforces: BTreeMap<&str, i64> = policies
            .iter()
            .map(|policy| (&*policy.reference.uid, policy.generation))
            .filter(|(uid, _)| !withheld.contains_key(*uid))
            .collect();
        let renewal = if withheld.is_empty() { Renewal::Complete } else { Renewal::Partial };
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
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let call = self.api.patch(&self.name, &params, &patch);
        match call_within(CALL_TIMEOUT, "write Leases", call).await {
            Ok(_) => {
                self.liveness.renewed.store(begun + 1, Ordering::Release);
                Ok(renewal)
            }
            Err(error) if error.is_not_found() => {
                Err(format!("{error}. Does the namespace (--namespace) exist?"))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
