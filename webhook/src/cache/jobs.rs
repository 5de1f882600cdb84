//! The watch cache of Jobs, and the position up to which it is complete.
//!
//! The position is the resourceVersion up to which every event was delivered: that of the last event, of a bookmark
//! (which the apiserver sends after all events up to it, KEP-956), or of the list that the watch began with. While a
//! list is being read the cache shows no single moment, so it has no position. If the watch breaks, the cache stays at
//! its last position.
//!
//! Jobs are reduced to what decisions about limits need, and a new list replaces the cache Job by Job: reading a list
//! does not double the memory.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::job::snapshot::JobSnapshot;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::tombstones::{JobTombstone, JobTombstones};

/// The watched Jobs. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct JobCache {
    table: Arc<Mutex<JobTable>>,
    position: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct JobTable {
    position: Option<u64>,
    /// Jobs by namespace and name. No two Jobs of one name exist at the same time.
    namespaces: HashMap<String, HashMap<String, CachedJob>>,
    /// Number of the list that is being read, or was read last.
    list: u64,
    tombstones: JobTombstones,
}

#[derive(Debug)]
struct CachedJob {
    job: Arc<JobSnapshot>,
    /// The last list that contained the Job, itself or by the events after it.
    list: u64,
}

impl JobCache {
    /// The position and the Jobs of a namespace, or of the cluster; `None` while a list is being read.
    pub(crate) fn snapshot(&self, namespace: Option<&str>) -> Option<(u64, Vec<Arc<JobSnapshot>>)> {
        let table = self.table.lock();
        let position = table.position?;
        let jobs = |jobs: &HashMap<String, CachedJob>| -> Vec<Arc<JobSnapshot>> {
            jobs.values().map(|cached| cached.job.clone()).collect()
        };
        let jobs = match namespace {
            Some(namespace) => table.namespaces.get(namespace).map(jobs).unwrap_or_default(),
            None => table.namespaces.values().flat_map(jobs).collect(),
        };
        Some((position, jobs))
    }

    /// The cached Job of the same uid and resourceVersion.
    pub(crate) fn find_same(&self, job: &JobSnapshot) -> Option<Arc<JobSnapshot>> {
        let table = self.table.lock();
        let cached = &table.namespaces.get(&job.namespace)?.get(&job.name)?.job;
        (cached.uid == job.uid && cached.resource_version == job.resource_version).then(|| cached.clone())
    }

    /// The Jobs of these uids that are known to be deleted in a view of resourceVersion `until`.
    pub(crate) fn deleted_jobs<'a>(
        &self,
        uids: impl IntoIterator<Item = &'a str>,
        until: u64,
    ) -> Vec<JobTombstone> {
        self.table.lock().tombstones.find(uids, until)
    }

    /// The resourceVersion up to which the cache is complete.
    pub(crate) fn position(&self) -> Option<u64> {
        *self.position.borrow()
    }

    /// Waits for a position, at most for `timeout`. Returns whether it was reached.
    pub async fn wait_for(&self, position: u64, timeout: Duration) -> bool {
        let mut positions = self.position.subscribe();
        let reached = positions.wait_for(|at| at.is_some_and(|at| at >= position));
        tokio::time::timeout(timeout, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Begins to replace the cache by a list.
    pub fn begin_list(&self) {
        let mut table = self.table.lock();
        table.list += 1;
        self.set_position(&mut table, None);
    }

    /// Adds a Job of the list.
    pub(crate) fn add(&self, job: Arc<JobSnapshot>) {
        self.table.lock().put(job);
    }

    /// Completes the list, whose resourceVersion is `position`: drops the Jobs that it did not contain.
    pub fn end_list(&self, position: u64) {
        let mut table = self.table.lock();
        let list = table.list;
        let JobTable { namespaces, tombstones, .. } = &mut *table;
        namespaces.retain(|_, jobs| {
            jobs.retain(|_, CachedJob { job, list: last }| {
                if *last != list {
                    add_unwatched_deletion(tombstones, job);
                }
                *last == list
            });
            jobs.shrink_to(jobs.len() * 2);
            !jobs.is_empty()
        });
        self.set_position(&mut table, Some(position));
    }

    /// A Job was created or changed.
    pub fn apply(&self, job: Arc<JobSnapshot>, position: u64) {
        let mut table = self.table.lock();
        table.put(job);
        self.set_position(&mut table, Some(position));
    }

    /// A Job was deleted.
    pub fn delete(&self, job: &JobSnapshot, position: u64) {
        let mut table = self.table.lock();
        table.tombstones.insert(job, position, Instant::now());
        if let Some(jobs) = table.namespaces.get_mut(&job.namespace) {
            jobs.remove(&job.name);
            if jobs.is_empty() {
                table.namespaces.remove(&job.namespace);
            }
        }
        self.set_position(&mut table, Some(position));
    }

    /// Every event up to `position` was delivered.
    pub(crate) fn bookmark(&self, position: u64) {
        self.set_position(&mut self.table.lock(), Some(position));
    }

    fn set_position(&self, table: &mut JobTable, position: Option<u64>) {
        table.position = position;
        self.position.send_replace(position);
    }
}

impl JobTable {
    fn put(&mut self, job: Arc<JobSnapshot>) {
        let list = self.list;
        if !self.namespaces.contains_key(&job.namespace) {
            self.namespaces.insert(job.namespace.clone(), HashMap::new());
        }
        let Some(jobs) = self.namespaces.get_mut(&job.namespace) else { return };
        match jobs.get_mut(&job.name) {
            Some(cached) => {
                let before = std::mem::replace(cached, CachedJob { job, list }).job;
                if before.uid != cached.job.uid {
                    add_unwatched_deletion(&mut self.tombstones, &before);
                }
            }
            None => {
                jobs.insert(job.name.clone(), CachedJob { job, list });
            }
        }
    }
}

/// Adds a tombstone for a Job whose deletion was not watched. Its last observed version resolves its attempt.
fn add_unwatched_deletion(tombstones: &mut JobTombstones, job: &JobSnapshot) {
    if let Ok(version) = job.resource_version.parse() {
        tombstones.insert(job, version, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, uid: &str) -> Arc<JobSnapshot> {
        let (namespace, name) = name.split_once('/').unwrap();
        Arc::new(JobSnapshot {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            ..JobSnapshot::default()
        })
    }

    fn uids(cache: &JobCache, namespace: Option<&str>) -> Vec<String> {
        let mut uids: Vec<_> =
            cache.snapshot(namespace).unwrap().1.iter().map(|job| job.uid.clone()).collect();
        uids.sort();
        uids
    }

    #[test]
    fn a_list_replaces_the_cache_and_has_no_position_before_its_end() {
        let cache = JobCache::default();
        assert!(cache.snapshot(None).is_none() && cache.position().is_none());
        cache.begin_list();
        cache.add(job("ci/a", "1"));
        cache.add(job("qa/b", "2"));
        assert!(cache.snapshot(None).is_none());
        cache.end_list(7);
        assert_eq!((cache.position(), uids(&cache, None)), (Some(7), vec!["1".to_owned(), "2".to_owned()]));
        cache.begin_list();
        assert!(cache.position().is_none());
        cache.add(job("ci/a", "3"));
        cache.end_list(9);
        assert_eq!((uids(&cache, None), uids(&cache, Some("qa"))), (vec!["3".to_owned()], vec![]));
        assert_eq!(cache.snapshot(None).unwrap().1.len(), 1);
    }

    #[test]
    fn an_event_changes_jobs_and_position_together() {
        let cache = JobCache::default();
        cache.begin_list();
        cache.end_list(1);
        cache.apply(job("ci/a", "1"), 2);
        cache.apply(job("ci/a", "1"), 3);
        cache.delete(&job("ci/a", "1"), 4);
        cache.apply(job("ci/a", "2"), 5);
        cache.bookmark(8);
        assert_eq!((cache.position(), uids(&cache, Some("ci"))), (Some(8), vec!["2".to_owned()]));
    }

    #[test]
    fn a_deleted_job_leaves_a_tombstone() {
        let gone = |cache: &JobCache, until| -> Vec<(String, u64)> {
            let tombstones = cache.deleted_jobs(["1", "2", "3"], until);
            tombstones.into_iter().map(|job| (job.uid, job.version)).collect()
        };
        let cache = JobCache::default();
        cache.begin_list();
        cache.end_list(1);
        cache.apply(job("ci/a", "1"), 2);
        cache.delete(&job("ci/a", "1"), 4);
        assert!(gone(&cache, 3).is_empty(), "this view may still show it");
        assert_eq!(gone(&cache, 4), [("1".to_owned(), 4)]);
        // A list reveals a deletion that was not watched.
        let seen = JobSnapshot { resource_version: "5".into(), ..(*job("ci/b", "2")).clone() };
        cache.apply(Arc::new(seen), 5);
        cache.begin_list();
        cache.add(job("ci/b", "3"));
        cache.end_list(9);
        assert_eq!(gone(&cache, 9), [("1".to_owned(), 4), ("2".to_owned(), 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_position_times_out() {
        let cache = JobCache::default();
        assert!(!cache.wait_for(3, Duration::from_millis(50)).await);
        cache.begin_list();
        cache.end_list(2);
        let other = cache.clone();
        let waits = tokio::spawn(async move { other.wait_for(3, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        cache.apply(job("ci/a", "1"), 4);
        assert!(waits.await.unwrap());
    }
}
