//! Makes ledgers before anybody asks for them: where a policy limits Jobs, and where a namespace comes under one. So the
//! first create does not wait, and a replica that starts later finds them and has nothing to doubt.
//!
//! Each replica does, and each for itself only where it knows that none was deleted a moment ago
//! ([`super::memory::KnownLedgers::lacks`]): the first one makes it, to the others it is there. As long as one is missing that
//! must not be made yet, Jobs are refused for it; so the policies that need it are not said to be enforced ([`withheld`]).

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
    client::WriteResult,
    count::{self, LedgerId},
    known_ledgers::KnownLedger,
    limiter::LedgerContext,
};

/// What could not be made, or not yet, is looked at again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Makes what is missing, for ever.
pub async fn make(shared: Arc<LedgerContext>) -> Infallible {
    let (mut policies, mut namespaces) = (shared.policies.changes(), shared.policies.namespace_changes());
    loop {
        policies.mark_unchanged();
        namespaces.mark_unchanged();
        if shared.policies.synced() {
            make_all(&shared).await;
        }
        tokio::select! {
            Ok(()) = policies.changed() => {}
            Ok(()) = namespaces.changed() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Those of `policies` whose limits are not decided by now, by uid, and why: each of their Jobs would be told so.
pub fn withheld(shared: &LedgerContext, policies: &PolicySet) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, needed_by) in wanted(policies, &shared.policies.namespaces(), &shared.namespace) {
        let id = LedgerId::of_name(name);
        let could_grant = count::could_grant(policies, &id);
        let Some(left) = shared.known_ledgers.recreate_delay(name, could_grant) else { continue };
        let why = missing(name, left);
        all.extend(needed_by.into_iter().map(|policy| (policy.to_owned(), why.clone())));
    }
    all
}

/// What people read where a ledger is missing for so long.
pub fn missing(ledger: &str, left: Duration) -> String {
    format!(
        "the JobLedger {ledger} is missing; what was granted by it may still land, so a new one is made in {} s",
        left.as_secs() + 1
    )
}

async fn make_all(shared: &LedgerContext) {
    let policies = shared.policies.current().clone();
    for name in wanted(&policies, &shared.policies.namespaces(), &shared.namespace).into_keys() {
        let id = LedgerId::of_name(name);
        let could_grant = count::could_grant(&policies, &id);
        if !shared.known_ledgers.should_create(name, could_grant) {
            continue;
        }
        match shared.ledger_client.create_empty(name).await {
            WriteResult::Written(ledger) => {
                if let Ok(known) = KnownLedger::parse(*ledger) {
                    shared.known_ledgers.record(name, &known);
                }
            }
            // Somebody else was first: the watch tells.
            WriteResult::Conflict => {}
            WriteResult::Unknown(why) | WriteResult::Rejected(why) => {
                tracing::warn!(ledger = name, "cannot be made ahead, trying again: {why}");
                return;
            }
        }
    }
}

/// The ledgers that enforced limits need, in order, and the uids of the policies that need each.
fn wanted<'a>(
    policies: &'a PolicySet,
    namespaces: &'a [(String, Arc<Labels>)],
    own_namespace: &str,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let limits: Vec<_> = policies.iter().filter(|policy| policy.enforced() && policy.has_limits()).collect();
    let tenants = namespaces
        .iter()
        .filter(|(name, _)| name != own_namespace && !keys::EXCLUDED_NAMESPACES.contains(&name.as_str()));
    let within = |policy: &Policy| {
        let limited = policy.spec.limits.iter().any(|limit| limit.scope != Scope::Cluster);
        limited || policy.spec.failure_backoff.is_some()
    };
    let over_cluster = |policy: &Policy| {
        policy.reference.kind == PolicyKind::ClusterJobPolicy
            && policy.spec.limits.iter().any(|limit| limit.scope == Scope::Cluster)
    };
    let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, labels) in tenants {
        for policy in limits.iter().filter(|policy| within(policy) && policy.selects_namespace(name, labels))
        {
            wanted.entry(name).or_default().push(&policy.reference.uid);
        }
    }
    for policy in limits.iter().filter(|policy| over_cluster(policy)) {
        wanted.entry(CLUSTER_LEDGER).or_default().push(&policy.reference.uid);
    }
    wanted
}
