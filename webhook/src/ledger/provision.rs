//! Creates ledgers before the first request: where a policy limits Jobs, and where a namespace comes under such a policy.
//! The first create then does not wait, and a replica that starts later finds the ledgers.
//!
//! Each replica creates a ledger only if it knows that none was deleted a moment ago
//! ([`KnownLedgers::should_create`](super::known_ledgers::KnownLedgers::should_create)); the first one to try succeeds.
//! While a missing ledger cannot be created yet, Jobs that need it are refused, so the policies that need it are not
//! reported as enforced ([`withheld`]).

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use job_handler_shared::{
    keys,
    ledger::crd::CLUSTER_LEDGER,
    policy::{
        limit::Scope,
        parsed::Policy,
        reference::{Labels, PolicyKind},
        set::PolicySet,
    },
};

use crate::ledger::{
    client::WriteResult, count, known_ledgers::KnownLedger, ledger_id::LedgerId, shared::LedgerContext,
};

/// How often ledgers that could not be created are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Creates missing ledgers for as long as the process runs.
pub(crate) async fn run(context: Arc<LedgerContext>) -> Infallible {
    let (mut policies, mut namespaces) = (context.policies.changes(), context.policies.namespace_changes());
    loop {
        policies.mark_unchanged();
        namespaces.mark_unchanged();
        if context.policies.synced() {
            create_missing(&context).await;
        }
        tokio::select! {
            Ok(()) = policies.changed() => {}
            Ok(()) = namespaces.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

/// The policies whose limits cannot be decided now, by uid, each with the reason: every Job under them would be refused.
pub(crate) fn withheld(context: &LedgerContext, policies: &PolicySet) -> BTreeMap<String, String> {
    let mut withheld = BTreeMap::new();
    for (name, needed_by) in required_ledgers(policies, &context.policies.namespaces(), &context.namespace) {
        let id = LedgerId::of_name(name);
        let may_have_granted = count::may_have_granted(policies, &id);
        let Some(left) = context.known_ledgers.recreate_delay(name, may_have_granted) else { continue };
        let why = missing_message(name, left);
        withheld.extend(needed_by.into_iter().map(|policy| (policy.to_owned(), why.clone())));
    }
    withheld
}

/// The refusal of Jobs whose ledger is missing and cannot be created yet.
pub(crate) fn missing_message(ledger: &str, left: Duration) -> String {
    format!(
        "the JobLedger {ledger} is missing; Jobs that it granted may still be stored, so a new one is created in {} s",
        left.as_secs() + 1
    )
}

async fn create_missing(context: &LedgerContext) {
    let policies = context.policies.current().clone();
    for name in required_ledgers(&policies, &context.policies.namespaces(), &context.namespace).into_keys() {
        let id = LedgerId::of_name(name);
        let may_have_granted = count::may_have_granted(&policies, &id);
        if !context.known_ledgers.should_create(name, may_have_granted) {
            continue;
        }
        match context.ledger_client.create_empty(name).await {
            WriteResult::Written(ledger) => {
                if let Ok(known) = KnownLedger::parse(*ledger) {
                    context.known_ledgers.record(name, &known);
                }
            }
            // Another replica created it; the watch will deliver it.
            WriteResult::Conflict => {}
            WriteResult::Unknown(why) | WriteResult::Rejected(why) | WriteResult::Failed(why) => {
                tracing::warn!(ledger = name, "cannot create the ledger, trying again: {why}");
                return;
            }
        }
    }
}

/// The ledgers that enforced limits need, each with the uids of the policies that need it.
fn required_ledgers<'a>(
    policies: &'a PolicySet,
    namespaces: &'a [(String, Arc<Labels>)],
    own_namespace: &str,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let tenants = namespaces
        .iter()
        .filter(|(name, _)| name != own_namespace && !keys::EXCLUDED_NAMESPACES.contains(&name.as_str()));
    let limits_namespaces = |policy: &Policy| {
        let limited = policy.spec.limits.iter().any(|limit| limit.scope != Scope::Cluster);
        limited || policy.spec.failure_backoff.is_some()
    };
    let limits_cluster = |policy: &Policy| {
        policy.reference.kind == PolicyKind::ClusterJobPolicy
            && policy.spec.limits.iter().any(|limit| limit.scope == Scope::Cluster)
    };
    let mut required: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, labels) in tenants {
        let selecting = policies.of_namespace(name).filter(|policy| {
            policy.enforced() && limits_namespaces(policy) && policy.selects_namespace(name, labels)
        });
        for policy in selecting {
            required.entry(name).or_default().push(&policy.reference.uid);
        }
    }
    for policy in policies.iter().filter(|policy| policy.enforced() && limits_cluster(policy)) {
        required.entry(CLUSTER_LEDGER).or_default().push(&policy.reference.uid);
    }
    required
}
