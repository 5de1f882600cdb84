//! Policies and namespaces in memory, so that reviews need no read of the apiserver.
//!
//! Watches update them; each change publishes a complete [`PolicySet`]. The set is used as long as the process lives, also
//! while the apiserver is out of reach: a stale policy is better than none, and limits need the apiserver anyway.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use futures::future::BoxFuture;
use job_handler_shared::{
    kube::object_stream::objects,
    policy::{
        index::PolicyIndex,
        parsed::{Policy, PolicyError},
        reference::{Labels, PolicyKind},
        set::PolicySet,
        spec::{ClusterJobPolicy, JobPolicy},
    },
    process::admin::Readiness,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher::Config},
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::cache::reflector::{self, WatchHandler};

/// How long a review waits for a namespace that has just been created.
const NEW_NAMESPACE: Duration = Duration::from_millis(500);

const JOB_POLICIES: u8 = 1;
const CLUSTER_JOB_POLICIES: u8 = 2;
const NAMESPACES: u8 = 4;
const ALL: u8 = JOB_POLICIES | CLUSTER_JOB_POLICIES | NAMESPACES;

/// The current policies and namespaces; clones share them.
#[derive(Clone, Debug)]
pub struct Policies(Arc<SharedPolicies>);

#[derive(Debug)]
struct SharedPolicies {
    set: ArcSwap<PolicySet>,
    index: RwLock<PolicyIndex<PolicyKey>>,
    synced: AtomicU8,
    policies_changed: watch::Sender<u64>,
    namespaces_changed: watch::Sender<u64>,
}

type PolicyKey = (PolicyKind, Option<String>, String);

impl Default for Policies {
    fn default() -> Self {
        Self(Arc::new(SharedPolicies {
            set: ArcSwap::default(),
            index: RwLock::default(),
            synced: AtomicU8::new(0),
            policies_changed: watch::Sender::new(0),
            namespaces_changed: watch::Sender::new(0),
        }))
    }
}

impl Policies {
    /// Fixed policies and namespaces, for tests and benchmarks.
    pub fn fixed(set: PolicySet, namespaces: impl IntoIterator<Item = (String, Labels)>) -> Self {
        let policies = Self::default();
        policies.0.set.store(Arc::new(set));
        policies.change_namespaces(|index| {
            namespaces.into_iter().for_each(|(name, labels)| _ = index.put_namespace(&name, labels));
        });
        policies.0.synced.store(ALL, Ordering::Release);
        policies
    }

    /// Replaces the policies and notifies their subscribers. For tests only: the process gets policies from its watches.
    pub fn replace_fixed(&self, set: PolicySet) {
        self.0.set.store(Arc::new(set));
        self.0.policies_changed.send_modify(|n| *n += 1);
    }

    /// The watches that keep everything up to date, by name. Their parts are registered at once, so that the process is
    /// not ready before they are.
    pub(crate) fn watches(
        &self,
        client: &Client,
        readiness: &Readiness,
    ) -> [(&'static str, BoxFuture<'static, ()>); 3] {
        let policies = reflector::run(
            objects(Api::<DeserializeGuard<JobPolicy>>::all(client.clone()), Config::default())
                .modify(trim_metadata),
            "jobpolicies.job-handler.io",
            readiness.register("JobPolicies"),
            PolicyHandler {
                policies: self.clone(),
                kind: PolicyKind::JobPolicy,
                read: Policy::namespaced,
                collected: PolicyIndex::default(),
            },
        );
        let cluster_policies = reflector::run(
            objects(Api::<DeserializeGuard<ClusterJobPolicy>>::all(client.clone()), Config::default())
                .modify(trim_metadata),
            "clusterjobpolicies.job-handler.io",
            readiness.register("ClusterJobPolicies"),
            PolicyHandler {
                policies: self.clone(),
                kind: PolicyKind::ClusterJobPolicy,
                read: Policy::cluster,
                collected: PolicyIndex::default(),
            },
        );
        let namespaces = reflector::run(
            objects(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), Config::default()),
            "namespaces",
            readiness.register("Namespaces"),
            NamespaceHandler { policies: self.clone() },
        );
        [
            ("JobPolicies watch", Box::pin(policies)),
            ("ClusterJobPolicies watch", Box::pin(cluster_policies)),
            ("Namespaces watch", Box::pin(namespaces)),
        ]
    }

    /// All current policies.
    pub fn current(&self) -> Guard<Arc<PolicySet>> {
        self.0.set.load()
    }

    /// Whether all policies and namespaces were listed once.
    pub(crate) fn synced(&self) -> bool {
        self.0.synced.load(Ordering::Acquire) == ALL
    }

    /// Changes whenever a policy does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.policies_changed.subscribe()
    }

    /// The labels of a namespace, if it is known.
    pub(crate) fn known_namespace(&self, name: &str) -> Option<Arc<Labels>> {
        self.0.index.read().namespace(name)
    }

    /// The labels of a namespace. Waits a moment for one that has just been created.
    pub async fn namespace(&self, name: &str) -> Option<Arc<Labels>> {
        if let Some(labels) = self.known_namespace(name) {
            return Some(labels);
        }
        let mut changed = self.0.namespaces_changed.subscribe();
        let appears = async {
            loop {
                if let Some(labels) = self.known_namespace(name) {
                    return Some(labels);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(NEW_NAMESPACE, appears).await.ok().flatten()
    }

    /// All known namespaces with their labels.
    pub fn namespaces(&self) -> Vec<(String, Arc<Labels>)> {
        self.0.index.read().namespaces()
    }

    /// Changes whenever a namespace does.
    pub(crate) fn namespace_changes(&self) -> watch::Receiver<u64> {
        self.0.namespaces_changed.subscribe()
    }

    fn change_namespaces(&self, change: impl FnOnce(&mut PolicyIndex<PolicyKey>)) {
        change(&mut self.0.index.write());
        self.0.namespaces_changed.send_modify(|n| *n += 1);
    }

    /// `change` returns whether it changed anything.
    fn change_policies(&self, change: impl FnOnce(&mut PolicyIndex<PolicyKey>) -> bool) {
        let mut index = self.0.index.write();
        if change(&mut index) {
            // Published under the lock, so that an earlier change cannot overwrite a later one.
            self.0.set.store(index.all().clone());
            self.0.policies_changed.send_modify(|n| *n += 1);
        }
    }

    fn sync(&self, part: u8) {
        self.0.synced.fetch_or(part, Ordering::AcqRel);
        self.0.policies_changed.send_modify(|n| *n += 1);
    }
}

/// Drops what tenants may write into a policy besides its spec, which its schema bounds.
fn trim_metadata(policy: &mut impl Resource) {
    let metadata = policy.meta_mut();
    (metadata.annotations, metadata.labels, metadata.managed_fields) = (None, None, None);
    (metadata.owner_references, metadata.finalizers) = (None, None);
}

struct PolicyHandler<P> {
    policies: Policies,
    kind: PolicyKind,
    read: fn(&P) -> Result<Policy, PolicyError>,
    /// What was read of a list.
    collected: PolicyIndex<PolicyKey>,
}

impl<P: Resource<DynamicType = ()>> PolicyHandler<P> {
    /// Logs a policy that cannot be read. It selects no Job and never becomes Ready, since no replica reports that it
    /// enforces it.
    fn policy(&self, found: &DeserializeGuard<P>) -> Option<Arc<Policy>> {
        match &found.0 {
            Ok(policy) => (self.read)(policy)
                .map(Arc::new)
                .inspect_err(|error| {
                    tracing::error!("this policy cannot be read and selects no Job: {error}");
                })
                .ok(),
            Err(invalid) => {
                let at = key(self.kind, found);
                tracing::error!(
                    "{:?} {}/{} cannot be read and selects no Job: {}. Do CRDs and webhook have one version?",
                    at.0,
                    at.1.unwrap_or_default(),
                    at.2,
                    invalid.error
                );
                None
            }
        }
    }
}

fn key<P: Resource<DynamicType = ()>>(kind: PolicyKind, found: &DeserializeGuard<P>) -> PolicyKey {
    (kind, found.namespace(), found.name_any())
}

impl<P: Resource<DynamicType = ()>> WatchHandler<DeserializeGuard<P>> for PolicyHandler<P> {
    fn begin(&mut self) {
        self.collected = PolicyIndex::default();
    }

    fn listed(&mut self, found: DeserializeGuard<P>) -> Option<DeserializeGuard<P>> {
        if let Some(policy) = self.policy(&found) {
            self.collected.collect(key(self.kind, &found), policy);
        }
        None
    }

    fn replace(&mut self, _: Vec<DeserializeGuard<P>>) {
        let (kind, collected) = (self.kind, std::mem::take(&mut self.collected));
        self.policies.change_policies(|index| {
            index.replace(|key| key.0 == kind, collected);
            true
        });
        self.policies.sync(match kind {
            PolicyKind::JobPolicy => JOB_POLICIES,
            PolicyKind::ClusterJobPolicy => CLUSTER_JOB_POLICIES,
        });
    }

    fn apply(&mut self, found: DeserializeGuard<P>) {
        let (key, policy) = (key(self.kind, &found), self.policy(&found));
        self.policies.change_policies(|index| index.put(key, policy));
    }

    fn delete(&mut self, found: DeserializeGuard<P>) {
        let key = key(self.kind, &found);
        self.policies.change_policies(|index| index.put(key, None));
    }
}

struct NamespaceHandler {
    policies: Policies,
}

impl WatchHandler<PartialObjectMeta<Namespace>> for NamespaceHandler {
    fn replace(&mut self, all: Vec<PartialObjectMeta<Namespace>>) {
        self.policies.change_namespaces(|index| {
            let names: BTreeSet<String> = all.iter().map(ResourceExt::name_any).collect();
            index.retain_namespaces(|name| names.contains(name));
            all.into_iter().for_each(|found| _ = index.put_namespace(&found.name_any(), labels(found)));
        });
        self.policies.sync(NAMESPACES);
    }

    fn apply(&mut self, found: PartialObjectMeta<Namespace>) {
        self.policies.change_namespaces(|index| {
            index.put_namespace(&found.name_any(), labels(found));
        });
    }

    fn delete(&mut self, found: PartialObjectMeta<Namespace>) {
        let deleted = found.name_any();
        self.policies.change_namespaces(|index| index.retain_namespaces(|name| name != deleted));
    }
}

fn labels(namespace: PartialObjectMeta<Namespace>) -> Labels {
    namespace.metadata.labels.unwrap_or_default()
}
