//! Makes ledgers before anybody asks for them: where a policy limits Jobs, and where a namespace comes under one. So the
//! first create does not wait, and a replica that starts later finds them and has nothing to doubt.
//!
//! Each replica does, and each for itself only where it knows that none was deleted a moment ago
//! ([`super::memory::Memory::lacks`]): the first one makes it, to the others it is there.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use job_handler_shared::{
    combine::{Labels, PolicyKind, PolicySet},
    keys,
    ledger::CLUSTER_LEDGER,
    policy::Scope,
};

use super::{
    counting::{self, LedgerId},
    limiter::Shared,
    memory::Known,
    store::Write,
};

/// What could not be made, or not yet, is looked at again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Makes what is missing, for ever.
pub async fn make(shared: Arc<Shared>, own_namespace: String) -> Infallible {
    let (mut policies, mut namespaces) = (shared.policies.changes(), shared.policies.namespace_changes());
    loop {
        policies.mark_unchanged();
        namespaces.mark_unchanged();
        if shared.policies.synced() {
            make_all(&shared, &own_namespace).await;
        }
        tokio::select! {
            Ok(()) = policies.changed() => {}
            Ok(()) = namespaces.changed() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn make_all(shared: &Shared, own_namespace: &str) {
    let policies = shared.policies.current().clone();
    for name in wanted(&policies, &shared.policies.namespaces(), own_namespace) {
        let id = LedgerId::of_name(name);
        let could_grant = counting::could_grant(&policies, &id);
        if !shared.memory.lacks(name, could_grant) {
            continue;
        }
        match shared.store.make(name).await {
            Write::Done(ledger) => {
                if let Ok(known) = Known::of(*ledger) {
                    shared.memory.note(name, &known);
                }
            }
            // Somebody else was first: the watch tells.
            Write::Conflict => {}
            Write::Unknown(why) | Write::Refused(why) => {
                tracing::warn!(ledger = name, "cannot be made ahead, trying again: {why}");
                return;
            }
        }
    }
}

/// The ledgers that enforced limits need, in order.
fn wanted<'a>(
    policies: &PolicySet,
    namespaces: &'a [(String, Arc<Labels>)],
    own_namespace: &str,
) -> BTreeSet<&'a str> {
    let limits: Vec<_> = policies.iter().filter(|policy| policy.enforced() && policy.limits_jobs()).collect();
    let tenants = namespaces
        .iter()
        .filter(|(name, _)| name != own_namespace && !keys::EXCLUDED_NAMESPACES.contains(&name.as_str()));
    let mut wanted: BTreeSet<&str> = tenants
        .filter(|(name, labels)| {
            limits.iter().any(|policy| {
                let within = policy.spec.limits.iter().any(|limit| limit.scope != Scope::Cluster);
                (within || policy.spec.failure_backoff.is_some()) && policy.selects_namespace(name, labels)
            })
        })
        .map(|(name, _)| name.as_str())
        .collect();
    let of_cluster = limits.iter().any(|policy| {
        policy.reference.kind == PolicyKind::ClusterJobPolicy
            && policy.spec.limits.iter().any(|limit| limit.scope == Scope::Cluster)
    });
    if of_cluster {
        wanted.insert(CLUSTER_LEDGER);
    }
    wanted
}
