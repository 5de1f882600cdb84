//! The watches of everything but Jobs (`job_watch`): each writes what it observes to the store and adds the keys to
//! reconcile to the work queue.
//!
//! Nothing depends on seeing an event: all reconcilers read the full state again every [`crate::runtime::resync::RESYNC`].

use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Instant};

use futures::Stream;
use job_handler_shared::{
    keys,
    kube::{object_stream::objects, watch},
    ledger::crd::JobLedger,
    policy::{
        parsed::{Policy, PolicyError},
        presence::Presence,
        reference::{Labels, PolicyKind, PolicyRef},
        spec::{ClusterJobPolicy, JobPolicy},
    },
    process::admin::ReadyHandle,
    result::storage_kind::StorageKind,
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace},
};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::watcher::{self, Config, Event},
};
use serde::de::DeserializeOwned;

use crate::{
    model::{
        policy_entry::{MissingPolicy, PolicyEntry},
        replica::Replica,
        result_ref::{ResultRef, result_ref_of},
        served_namespaces::NamespaceScope,
        stored_result::StoredResult,
    },
    observe::{context::Context, key::Key, store_policies::ListedPolicies},
};

/// Seconds after which the apiserver ends a watch. If the end does not arrive within another 5 s, the client treats the
/// connection as dead and watches again from the last version it saw, so that events lost on a silent connection arrive
/// within half a minute. With kube's default, that would take 5 min.
pub(crate) const WATCH_SECONDS: u32 = 20;

/// Configuration of all watches but that of Jobs.
pub(crate) fn config() -> Config {
    Config::default().timeout(WATCH_SECONDS)
}

/// Watches namespaced policies.
pub(crate) async fn policies(context: Context, ready: ReadyHandle) {
    let api = Api::<JobPolicy>::all(context.client.clone());
    let kind = PolicyKind::JobPolicy;
    follow_policies(&context, objects(api, config()), &ready, kind, |policy| PolicyEntry {
        reference: PolicyRef::of(kind, policy),
        generation: policy.metadata.generation.unwrap_or_default(),
        policy: Policy::namespaced(policy).map(Arc::new).map_err(unreadable),
        status: policy.status.clone().unwrap_or_default(),
    })
    .await;
}

/// Watches cluster-wide policies.
pub(crate) async fn cluster_policies(context: Context, ready: ReadyHandle) {
    let api = Api::<ClusterJobPolicy>::all(context.client.clone());
    let kind = PolicyKind::ClusterJobPolicy;
    follow_policies(&context, objects(api, config()), &ready, kind, |policy| PolicyEntry {
        reference: PolicyRef::of(kind, policy),
        generation: policy.metadata.generation.unwrap_or_default(),
        policy: read_cluster_policy(&context, policy),
        status: policy.status.clone().unwrap_or_default(),
    })
    .await;
}

/// As if it selected served namespaces only.
fn read_cluster_policy(context: &Context, policy: &ClusterJobPolicy) -> Result<Arc<Policy>, MissingPolicy> {
    let mut policy = policy.clone();
    policy.spec.namespace_selector = context.store.served.select(policy.spec.namespace_selector.take());
    Policy::cluster(&policy).map(Arc::new).map_err(unreadable)
}

fn unreadable(error: PolicyError) -> MissingPolicy {
    MissingPolicy::Unreadable(error.to_string())
}

async fn follow_policies<K: ResourceExt + Debug + Clone + Send + 'static>(
    context: &Context,
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    ready: &ReadyHandle,
    kind: PolicyKind,
    read: impl Fn(&K) -> PolicyEntry,
) {
    // Stored at once at the end of the list: each change of the set regroups Jobs.
    let mut listed = ListedPolicies::default();
    let served = &context.store.served;
    let read = |policy: &K| {
        let entry = read(policy);
        if entry.reference.namespace.as_ref().is_some_and(|namespace| !served.contains(namespace)) {
            return None;
        }
        if let Err(MissingPolicy::Unreadable(error)) = &entry.policy {
            tracing::warn!(policy = %entry.reference, "cannot be read and selects nothing: {error}");
        }
        Some(entry)
    };
    let resource = match kind {
        PolicyKind::JobPolicy => "jobpolicies.job-handler.io",
        PolicyKind::ClusterJobPolicy => "clusterjobpolicies.job-handler.io",
    };
    watch::run(stream, resource, ready, |event| {
        let changed = match event {
            Event::Init => {
                listed = ListedPolicies::default();
                false
            }
            Event::InitApply(policy) => {
                read(&policy).into_iter().for_each(|entry| listed.push(entry));
                false
            }
            Event::Apply(policy) => read(&policy).is_some_and(|entry| context.store.put_policy(entry)),
            Event::Delete(policy) => {
                let uid = policy.uid().unwrap_or_default();
                context.store.remove_policies(|known| known.uid == uid)
            }
            Event::InitDone => context.store.replace_policies(kind, std::mem::take(&mut listed)),
        };
        if changed {
            context.resync.notify_one();
        }
    })
    .await;
}

/// Watches namespaces' labels.
pub(crate) async fn namespaces(context: Context, ready: ReadyHandle) {
    let Context { store, queue, .. } = &context;
    let stream = objects(Api::<PartialObjectMeta<Namespace>>::all(context.client.clone()), config());
    let mut seen: Option<BTreeSet<String>> = None;
    watch::run(stream, "namespaces", &ready, |event: Event<PartialObjectMeta<Namespace>>| match event {
        Event::Init => seen = Some(BTreeSet::new()),
        Event::Apply(namespace) | Event::InitApply(namespace) => {
            let name = namespace.name_any();
            seen.iter_mut().for_each(|seen| _ = seen.insert(name.clone()));
            let labels: Labels = namespace.metadata.labels.unwrap_or_default();
            for uid in store.put_namespace(&name, labels) {
                store.group_of(&uid).map(Key::Group).into_iter().for_each(|key| queue.add(key));
                queue.add(Key::Job(uid));
            }
        }
        Event::Delete(namespace) => {
            let gone = namespace.name_any();
            store.remove_namespaces(|name| name == gone);
        }
        Event::InitDone => {
            let seen = seen.take().unwrap_or_default();
            store.remove_namespaces(|name| !seen.contains(name));
        }
    })
    .await;
}

/// Watches the metadata of results in ConfigMaps: which Jobs are harvested, and which have pending announcements.
pub(crate) async fn results(context: Context, scope: NamespaceScope, ready: ReadyHandle) {
    results_in::<ConfigMap>(&context, &scope, &ready, StorageKind::ConfigMap).await;
}

/// Watches the metadata of results in objects of kind `K`.
pub(crate) async fn results_in<K>(
    context: &Context,
    scope: &NamespaceScope,
    ready: &ReadyHandle,
    kind: StorageKind,
) where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + Send
        + 'static,
    PartialObjectMeta<K>: DeserializeOwned + kube::Resource<DynamicType = (), Scope = K::Scope>,
{
    let Context { store, queue, .. } = context;
    store.seal.load(&context.client, &context.namespace, ready).await;
    // Shards carry no label `job-handler/created`; see [`crate::harvest::pack`].
    let config = config().labels(&format!("{}=true", keys::CREATED));
    let stream = objects(scope.api::<PartialObjectMeta<K>>(context.client.clone()), config);
    let mut seen: Option<BTreeSet<(String, String)>> = None;
    let resource = format!("{}s", kind.resource());
    watch::run(stream, &resource, ready, |event: Event<PartialObjectMeta<K>>| match event {
        Event::Init => seen = Some(BTreeSet::new()),
        Event::Apply(PartialObjectMeta { metadata, .. })
        | Event::InitApply(PartialObjectMeta { metadata, .. }) => {
            let sealed = store.seal.holds(&metadata);
            let Some((uid, result)) = result_ref_of(kind, &metadata, sealed) else { return };
            seen.iter_mut().for_each(|seen| _ = seen.insert((result.namespace.clone(), result.name.clone())));
            store.put_stored(StoredResult::of(&uid, &result, &metadata), result);
            // The Job is harvested: its group can be pruned, and its pending Events published.
            store.group_of(&uid).map(Key::Group).into_iter().for_each(|key| queue.add(key));
            queue.add(Key::Job(uid));
        }
        Event::Delete(PartialObjectMeta { metadata, .. }) => {
            let (namespace, name) =
                (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            store.remove_stored(&ResultRef::at(kind, &namespace, &name), None);
            // If the Job still exists, it is harvested again, from what it still has.
            let uid = metadata.labels.and_then(|mut labels| labels.remove(keys::JOB_UID));
            uid.map(Key::Job).into_iter().for_each(|key| queue.add(key));
        }
        Event::InitDone => {
            let seen = seen.take().unwrap_or_default();
            // Other namespaces may have a watch of their own.
            store.retain_stored(kind, |namespace, name| {
                !scope.covers(namespace) || seen.contains(&(namespace.into(), name.into()))
            });
        }
    })
    .await;
}

/// Watches the ledgers.
pub(crate) async fn ledgers(context: Context, ready: ReadyHandle) {
    let store = &context.store;
    let api = Api::<JobLedger>::namespaced(context.client.clone(), &context.namespace);
    let mut seen: Option<BTreeSet<String>> = None;
    watch::run(objects(api, config()), "jobledgers.job-handler.io", &ready, |event| match event {
        Event::Init => seen = Some(BTreeSet::new()),
        Event::Apply(ledger) | Event::InitApply(ledger) => {
            seen.iter_mut().for_each(|seen| _ = seen.insert(ledger.name_any()));
            store.ledgers.put(&ledger);
        }
        Event::Delete(ledger) => {
            let gone = ledger.name_any();
            store.ledgers.remove_where(|name| name == gone);
        }
        Event::InitDone => {
            let seen = seen.take().unwrap_or_default();
            store.ledgers.remove_where(|name| !seen.contains(name));
        }
    })
    .await;
}

/// Watches the Leases of the webhook replicas.
pub(crate) async fn replicas(context: Context, ready: ReadyHandle) {
    let store = &context.store;
    let config = config().labels(&format!("{}={}", keys::COMPONENT, keys::COMPONENT_WEBHOOK));
    let stream = objects(Api::<Lease>::namespaced(context.client.clone(), &context.namespace), config);
    let mut seen: Option<BTreeSet<String>> = None;
    watch::run(stream, "leases.coordination.k8s.io", &ready, |event: Event<Lease>| match event {
        Event::Init => seen = Some(BTreeSet::new()),
        Event::Apply(lease) | Event::InitApply(lease) => {
            let name = lease.name_any();
            seen.iter_mut().for_each(|seen| _ = seen.insert(name.clone()));
            store.put_replica(&name, read_replica(&lease));
        }
        Event::Delete(lease) => {
            let gone = lease.name_any();
            store.remove_replicas(|name| name == gone);
        }
        Event::InitDone => {
            let seen = seen.take().unwrap_or_default();
            store.remove_replicas(|name| !seen.contains(name));
        }
    })
    .await;
}

fn read_replica(lease: &Lease) -> Replica {
    let spec = lease.spec.as_ref();
    let has_holder = spec.and_then(|s| s.holder_identity.as_deref()).is_some_and(|holder| !holder.is_empty());
    let duration = spec.and_then(|s| s.lease_duration_seconds).unwrap_or(keys::WEBHOOK_LEASE_SECONDS);
    Replica {
        renewed: spec.and_then(|s| s.renew_time.as_ref()).map(|t| t.0.to_string()).unwrap_or_default(),
        seen: Instant::now(),
        // A replica that released its Lease on exit is not live.
        duration: if has_holder { u64::try_from(duration).unwrap_or_default() } else { 0 },
        policies: Presence::read(lease.annotations()),
    }
}

#[cfg(test)]
mod tests;
