//! Keeps the watch cache of Jobs up to date, with the labels that the policies of the moment name.

use std::{convert::Infallible, sync::Arc, time::Duration};

use job_handler_shared::{
    job::{
        snapshot::JobSnapshot,
        watch::{self, JobObserver, WatchTiming},
    },
    policy::label_keys::NamespaceLabelKeys,
    process::admin::ReadyHandle,
};
use kube::Client;

use crate::cache::{consistent_list::read_job, jobs::JobCache, policies::Policies};

/// The apiserver sends a bookmark about once a minute.
const TIMING: WatchTiming = WatchTiming {
    seconds: 290,
    silence: Duration::from_secs(100),
    // While a list is read, the cache decides nothing. Until then, rounds list the Jobs of their namespace.
    relist: Duration::from_secs(30),
};

/// Fills the cache.
struct CacheObserver {
    cache: JobCache,
    policies: Policies,
    /// By which labels the cached Jobs are known.
    keys: Arc<NamespaceLabelKeys>,
}

/// Keeps the cache up to date for as long as the process runs, once the policies are known.
pub(crate) async fn run(
    client: Client,
    cache: JobCache,
    policies: Policies,
    readiness: ReadyHandle,
) -> Infallible {
    let mut changes = policies.changes();
    // Before, any list would have to be read again.
    while !policies.synced() && changes.changed().await.is_ok() {}
    let observer = CacheObserver { cache, policies, keys: Arc::default() };
    watch::run(client, TIMING, observer, changes, readiness).await
}

impl JobObserver for CacheObserver {
    fn read(&self, json: &[u8]) -> serde_json::Result<JobSnapshot> {
        read_job(json, &self.keys)
    }

    fn list_began(&mut self) {
        self.keys = self.policies.current().label_keys().clone();
        self.cache.begin_list();
    }

    fn listed(&mut self, job: JobSnapshot) {
        self.cache.add(Arc::new(job));
    }

    fn list_ended(&mut self, position: u64) {
        self.cache.end_list(position);
    }

    fn changed(&mut self, job: JobSnapshot, position: u64) {
        self.cache.apply(Arc::new(job), position);
    }

    fn deleted(&mut self, job: JobSnapshot, position: u64) {
        self.cache.delete(&job, position);
    }

    fn reached(&mut self, position: u64) {
        self.cache.bookmark(position);
    }

    /// The cached Jobs lack labels that a policy names since then.
    fn needs_list(&self) -> bool {
        let policies = self.policies.current();
        let named = policies.label_keys();
        !Arc::ptr_eq(&self.keys, named) && !self.keys.covers(named)
    }
}
