//! The Jobs of the cluster in memory, as far as a watch has told of them, and how far that is.
//!
//! The position is the resourceVersion up to which everything was told: of the last event, of a bookmark (which the
//! apiserver sends behind all events up to it, KEP-956), or of the list that the watch began with. While a list is being
//! read the picture is of no one moment, so there is no position. A watch that is broken leaves a picture that is old, and
//! says so by its position.
//!
//! Jobs are cut down to what decisions about limits need, and a new list replaces the old picture Job by Job: memory does
//! not grow while it is read.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::job::snapshot::JobSnapshot;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::cache::tombstones::{JobTombstone, JobTombstones};

/// All Jobs that were told of; clones share them.
#[derive(Clone, Debug)]
pub struct JobCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    picture: Mutex<Picture>,
    position: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Picture {
    position: Option<u64>,
    /// Namespace -> name -> the Job. Two of one name are never there at once.
    namespaces: HashMap<String, HashMap<String, CachedJob>>,
    /// Of the list that is being read, or was read last.
    list: u64,
    tombstones: JobTombstones,
}

#[derive(Debug)]
struct CachedJob {
    job: Arc<JobSnapshot>,
    /// The list, or the events after it, in which it was there.
    list: u64,
}

impl Default for JobCache {
    fn default() -> Self {
        let position = watch::Sender::new(None);
        Self(Arc::new(Inner { picture: Mutex::default(), position }))
    }
}

impl JobCache {
    /// The Jobs of a namespace, or all, and the position; none while a list is being read.
    pub fn snapshot(&self, namespace: Option<&str>) -> Option<(u64, Vec<Arc<JobSnapshot>>)> {
        let picture = self.picture();
        let position = picture.position?;
        let jobs = |jobs: &HashMap<String, CachedJob>| -> Vec<Arc<JobSnapshot>> {
            jobs.values().map(|entry| entry.job.clone()).collect()
        };
        let seen = match namespace {
            Some(namespace) => picture.namespaces.get(namespace).map(jobs).unwrap_or_default(),
            None => picture.namespaces.values().flat_map(jobs).collect(),
        };
        Some((position, seen))
    }

    /// Of these uids, the Jobs that are gone from a view of this resourceVersion.
    pub fn deleted_jobs<'a>(&self, uids: impl IntoIterator<Item = &'a str>, until: u64) -> Vec<JobTombstone> {
        self.picture().tombstones.find(uids, until)
    }

    /// Everything up to here was told.
    pub fn position(&self) -> Option<u64> {
        *self.0.position.borrow()
    }

    /// Waits for a position, but no longer than `patience`. Whether it was reached.
    pub async fn wait_for(&self, position: u64, patience: Duration) -> bool {
        let mut positions = self.0.position.subscribe();
        let reached = positions.wait_for(|at| at.is_some_and(|at| at >= position));
        tokio::time::timeout(patience, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// How many Jobs there are.
    pub fn len(&self) -> usize {
        self.picture().namespaces.values().map(HashMap::len).sum()
    }

    /// A list begins.
    pub fn begin_list(&self) {
        let mut picture = self.picture();
        picture.list += 1;
        self.set_position(&mut picture, None);
    }

    /// A page of it.
    pub fn add_page(&self, jobs: Vec<Arc<JobSnapshot>>) {
        let mut picture = self.picture();
        for job in jobs {
            picture.put(job);
        }
    }

    /// It was read; it was of this resourceVersion.
    pub fn end_list(&self, position: u64) {
        let mut picture = self.picture();
        let list = picture.list;
        let Picture { namespaces, tombstones, .. } = &mut *picture;
        namespaces.retain(|_, jobs| {
            jobs.retain(|_, CachedJob { job, list: last }| {
                if *last != list {
                    unseen(tombstones, job);
                }
                *last == list
            });
            jobs.shrink_to(jobs.len() * 2);
            !jobs.is_empty()
        });
        self.set_position(&mut picture, Some(position));
    }

    /// A Job was made or changed.
    pub fn apply(&self, job: Arc<JobSnapshot>, position: u64) {
        let mut picture = self.picture();
        picture.put(job);
        self.set_position(&mut picture, Some(position));
    }

    /// A Job is gone.
    pub fn delete(&self, job: &JobSnapshot, position: u64) {
        let mut picture = self.picture();
        picture.tombstones.insert(job, position, Instant::now());
        if let Some(jobs) = picture.namespaces.get_mut(&job.namespace) {
            jobs.remove(&job.name);
            if jobs.is_empty() {
                picture.namespaces.remove(&job.namespace);
            }
        }
        self.set_position(&mut picture, Some(position));
    }

    /// Nothing happened up to here that was not told.
    pub fn bookmark(&self, position: u64) {
        self.set_position(&mut self.picture(), Some(position));
    }

    fn set_position(&self, picture: &mut Picture, position: Option<u64>) {
        picture.position = position;
        self.0.position.send_replace(position);
    }

    fn picture(&self) -> MutexGuard<'_, Picture> {
        self.0.picture.lock()
    }
}

impl Picture {
    fn put(&mut self, job: Arc<JobSnapshot>) {
        let list = self.list;
        if !self.namespaces.contains_key(&job.namespace) {
            self.namespaces.insert(job.namespace.clone(), HashMap::new());
        }
        let Some(jobs) = self.namespaces.get_mut(&job.namespace) else { return };
        match jobs.get_mut(&job.name) {
            Some(entry) => {
                let before = std::mem::replace(entry, CachedJob { job, list }).job;
                if before.uid != entry.job.uid {
                    unseen(&mut self.tombstones, &before);
                }
            }
            None => {
                jobs.insert(job.name.clone(), CachedJob { job, list });
            }
        }
    }
}

/// A Job is gone, and nobody told when it went. As it was seen last it was seen for certain: that resolves its attempt.
fn unseen(tombstones: &mut JobTombstones, job: &JobSnapshot) {
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
    fn a_list_replaces_what_was_there_and_has_no_position_before_its_end() {
        let cache = JobCache::default();
        assert!(cache.snapshot(None).is_none() && cache.position().is_none());
        cache.begin_list();
        cache.add_page(vec![job("ci/a", "1"), job("qa/b", "2")]);
        assert!(cache.snapshot(None).is_none());
        cache.end_list(7);
        assert_eq!((cache.position(), uids(&cache, None)), (Some(7), vec!["1".to_owned(), "2".to_owned()]));
        cache.begin_list();
        assert!(cache.position().is_none());
        cache.add_page(vec![job("ci/a", "3")]);
        cache.end_list(9);
        assert_eq!((uids(&cache, None), uids(&cache, Some("qa"))), (vec!["3".to_owned()], vec![]));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn events_move_the_picture_and_its_position_together() {
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
    fn a_job_that_came_and_went_is_known_to_be_gone() {
        let gone = |cache: &JobCache, until| -> Vec<(String, u64)> {
            let tombstones = cache.deleted_jobs(["1", "2", "3"], until);
            tombstones.into_iter().map(|grave| (grave.uid, grave.version)).collect()
        };
        let cache = JobCache::default();
        cache.begin_list();
        cache.end_list(1);
        cache.apply(job("ci/a", "1"), 2);
        cache.delete(&job("ci/a", "1"), 4);
        assert!(gone(&cache, 3).is_empty(), "such a view may show it yet");
        assert_eq!(gone(&cache, 4), [("1".to_owned(), 4)]);
        // Also one whose deletion was not told of, but that a list no longer shows.
        let seen = JobSnapshot { resource_version: "5".into(), ..(*job("ci/b", "2")).clone() };
        cache.apply(Arc::new(seen), 5);
        cache.begin_list();
        cache.add_page(vec![job("ci/b", "3")]);
        cache.end_list(9);
        assert_eq!(gone(&cache, 9), [("1".to_owned(), 4), ("2".to_owned(), 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_is_waited_for_and_not_for_ever() {
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
