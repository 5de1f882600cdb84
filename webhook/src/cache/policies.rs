//! Policies and namespaces in memory: what every decision rests on, without a read on the request path.
//!
//! Watches keep them; each change is published as one whole [`PolicySet`]. The set is served as long as the process
//! lives, also while the apiserver is away: a stale policy is better than none, and a limit needs the apiserver anyway.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use futures::future::BoxFuture;
use job_handler_shared::{
    policy::{
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
    runtime::watcher,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::cache::reflector::{self, WatchHandler};

/// How long a review waits for a namespace that was created a moment ago.
const NEW_NAMESPACE: Duration = Duration::from_millis(500);

const JOB_POLICIES: u8 = 1;
const CLUSTER_JOB_POLICIES: u8 = 2;
const NAMESPACES: u8 = 4;
const ALL: u8 = JOB_POLICIES | CLUSTER_JOB_POLICIES | NAMESPACES;

/// The policies and namespaces of the moment; clones share them.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: ArcSwap<PolicySet>,
    known: Mutex<BTreeMap<Key, Arc<Policy>>>,
    namespaces: RwLock<HashMap<String, Arc<Labels>>>,
    synced: AtomicU8,
    policies_changed: watch::Sender<u64>,
    namespaces_changed: watch::Sender<u64>,
}

type Key = (PolicyKind, Option<String>, String);

impl Default for Policies {
    fn default() -> Self {
        Self(Arc::new(Inner {
            set: ArcSwap::default(),
            known: Mutex::default(),
            namespaces: RwLock::default(),
            synced: AtomicU8::new(0),
            policies_changed: watch::Sender::new(0),
            namespaces_changed: watch::Sender::new(0),
        }))
    }
}

impl Policies {
    /// A picture that nothing changes, for tests and benchmarks.
    pub fn fixed(set: PolicySet, namespaces: impl IntoIterator<Item = (String, Labels)>) -> Self {
        let policies = Self::default();
        policies.0.set.store(Arc::new(set));
        policies.namespaces_mut(|known| {
            known.extend(namespaces.into_iter().map(|(name, labels)| (name, Arc::new(labels))));
        });
        policies.0.synced.store(ALL, Ordering::Release);
        policies
    }

    /// Another such picture, of the same namespaces.
    pub fn fix(&self, set: PolicySet) {
        self.0.set.store(Arc::new(set));
        self.0.policies_changed.send_modify(|n| *n += 1);
    }

    /// The watches that keep everything up to date, by name. Their parts are registered at once, so that the process is
    /// not ready before they are.
    pub fn watches(
        &self,
        client: &Client,
        readiness: &Readiness,
    ) -> [(&'static str, BoxFuture<'static, ()>); 3] {
        let policies = reflector::run(
            watcher(Api::<DeserializeGuard<JobPolicy>>::all(client.clone()), watcher::Config::default()),
            "jobpolicies.job-handler.io",
            readiness.register("JobPolicies"),
            PolicyHandler { policies: self.clone(), kind: PolicyKind::JobPolicy, read: Policy::namespaced },
        );
        let cluster_policies = reflector::run(
            watcher(
                Api::<DeserializeGuard<ClusterJobPolicy>>::all(client.clone()),
                watcher::Config::default(),
            ),
            "clusterjobpolicies.job-handler.io",
            readiness.register("ClusterJobPolicies"),
            PolicyHandler {
                policies: self.clone(),
                kind: PolicyKind::ClusterJobPolicy,
                read: Policy::cluster,
            },
        );
        let namespaces = reflector::run(
            watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), watcher::Config::default()),
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

    /// All policies of the moment.
    pub fn current(&self) -> Guard<Arc<PolicySet>> {
        self.0.set.load()
    }

    /// Whether everything was seen once.
    pub fn synced(&self) -> bool {
        self.0.synced.load(Ordering::Acquire) == ALL
    }

    /// Tells of every change of a policy.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.policies_changed.subscribe()
    }

    /// Labels of a namespace, if it is known.
    pub fn known_namespace(&self, name: &str) -> Option<Arc<Labels>> {
        self.0.namespaces.read().get(name).cloned()
    }

    /// Labels of a namespace; one that was created a moment ago is waited for.
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

    /// All namespaces that are known, with their labels.
    pub fn namespaces(&self) -> Vec<(String, Arc<Labels>)> {
        let known = self.0.namespaces.read();
        known.iter().map(|(name, labels)| (name.clone(), labels.clone())).collect()
    }

    /// Tells of every change of a namespace.
    pub fn namespace_changes(&self) -> watch::Receiver<u64> {
        self.0.namespaces_changed.subscribe()
    }

    fn namespaces_mut(&self, change: impl FnOnce(&mut HashMap<String, Arc<Labels>>)) {
        change(&mut self.0.namespaces.write());
        self.0.namespaces_changed.send_modify(|n| *n += 1);
    }

    fn policies_mut(&self, change: impl FnOnce(&mut BTreeMap<Key, Arc<Policy>>)) {
        let mut known = self.0.known.lock();
        change(&mut known);
        // Stored under the lock, so that a later change cannot be overtaken by an earlier one.
        self.0.set.store(Arc::new(PolicySet::new(known.values().cloned())));
        self.0.policies_changed.send_modify(|n| *n += 1);
    }

    fn sync(&self, part: u8) {
        self.0.synced.fetch_or(part, Ordering::AcqRel);
        self.0.policies_changed.send_modify(|n| *n += 1);
    }
}

struct PolicyHandler<P> {
    policies: Policies,
    kind: PolicyKind,
    read: fn(&P) -> Result<Policy, PolicyError>,
}

impl<P: Resource<DynamicType = ()>> PolicyHandler<P> {
    /// A policy that cannot be read is told of and selects nothing; it never becomes Ready, since no replica says that
    /// it enforces it.
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

fn key<P: Resource<DynamicType = ()>>(kind: PolicyKind, found: &DeserializeGuard<P>) -> Key {
    (kind, found.namespace(), found.name_any())
}

impl<P: Resource<DynamicType = ()>> WatchHandler<DeserializeGuard<P>> for PolicyHandler<P> {
    fn replace(&mut self, all: Vec<DeserializeGuard<P>>) {
        let fresh: Vec<_> =
            all.iter().filter_map(|found| Some((key(self.kind, found), self.policy(found)?))).collect();
        let kind = self.kind;
        self.policies.policies_mut(|known| {
            known.retain(|key, _| key.0 != kind);
            known.extend(fresh);
        });
        self.policies.sync(match kind {
            PolicyKind::JobPolicy => JOB_POLICIES,
            PolicyKind::ClusterJobPolicy => CLUSTER_JOB_POLICIES,
        });
    }

    fn apply(&mut self, found: DeserializeGuard<P>) {
        let (key, policy) = (key(self.kind, &found), self.policy(&found));
        // The status changes often, the spec seldom; only the spec moves the generation.
        let same = policy.as_ref().is_some_and(|new| {
            let known = self.policies.0.known.lock();
            known.get(&key).is_some_and(|old| {
                old.generation == new.generation && old.reference == new.reference && old.spec == new.spec
            })
        });
        if same {
            return;
        }
        self.policies.policies_mut(|known| {
            match policy {
                Some(policy) => known.insert(key, policy),
                None => known.remove(&key),
            };
        });
    }

    fn delete(&mut self, found: DeserializeGuard<P>) {
        let key = key(self.kind, &found);
        self.policies.policies_mut(|known| {
            known.remove(&key);
        });
    }
}

struct NamespaceHandler {
    policies: Policies,
}

impl WatchHandler<PartialObjectMeta<Namespace>> for NamespaceHandler {
    fn replace(&mut self, all: Vec<PartialObjectMeta<Namespace>>) {
        self.policies.namespaces_mut(|known| {
            *known = all.into_iter().map(|found| (found.name_any(), labels(found))).collect();
        });
        self.policies.sync(NAMESPACES);
    }

    fn apply(&mut self, found: PartialObjectMeta<Namespace>) {
        self.policies.namespaces_mut(|known| {
            known.insert(found.name_any(), labels(found));
        });
    }

    fn delete(&mut self, found: PartialObjectMeta<Namespace>) {
        self.policies.namespaces_mut(|known| {
            known.remove(&found.name_any());
        });
    }
}

fn labels(namespace: PartialObjectMeta<Namespace>) -> Arc<Labels> {
    Arc::new(namespace.metadata.labels.unwrap_or_default())
}
