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

use crate::cache::tombstones::{Grave, Graves};

/// All Jobs that were told of; clones share them.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    picture: Mutex<Picture>,
    position: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Picture {
    position: Option<u64>,
    /// Namespace -> name -> the Job. Two of one name are never there at once.
    namespaces: HashMap<String, HashMap<String, Entry>>,
    /// Of the list that is being read, or was read last.
    list: u64,
    graves: Graves,
}

#[derive(Debug)]
struct Entry {
    job: Arc<JobSnapshot>,
    /// The list, or the events after it, in which it was there.
    list: u64,
}

impl Default for Cache {
    fn default() -> Self {
        let position = watch::Sender::new(None);
        Self(Arc::new(Inner { picture: Mutex::default(), position }))
    }
}

impl Cache {
    /// The Jobs of a namespace, or all, and the position; none while a list is being read.
    pub fn see(&self, namespace: Option<&str>) -> Option<(u64, Vec<Arc<JobSnapshot>>)> {
        let picture = self.picture();
        let position = picture.position?;
        let jobs = |jobs: &HashMap<String, Entry>| -> Vec<Arc<JobSnapshot>> {
            jobs.values().map(|entry| entry.job.clone()).collect()
        };
        let seen = match namespace {
            Some(namespace) => picture.namespaces.get(namespace).map(jobs).unwrap_or_default(),
            None => picture.namespaces.values().flat_map(jobs).collect(),
        };
        Some((position, seen))
    }

    /// Of these uids, the Jobs that are gone from a view of this resourceVersion.
    pub fn gone<'a>(&self, uids: impl IntoIterator<Item = &'a str>, until: u64) -> Vec<Grave> {
        self.picture().graves.find(uids, until)
    }

    /// Everything up to here was told.
    pub fn position(&self) -> Option<u64> {
        *self.0.position.borrow()
    }

    /// Waits for a position, but no longer than `patience`. Whether it was reached.
    pub async fn reaches(&self, position: u64, patience: Duration) -> bool {
        let mut positions = self.0.position.subscribe();
        let reached = positions.wait_for(|at| at.is_some_and(|at| at >= position));
        tokio::time::timeout(patience, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    /// How many Jobs there are.
    pub fn count(&self) -> usize {
        self.picture().namespaces.values().map(HashMap::len).sum()
    }

    /// A list begins.
    pub fn begin(&self) {
        let mut picture = self.picture();
        picture.list += 1;
        self.moves(&mut picture, None);
    }

    /// A page of it.
    pub fn page(&self, jobs: Vec<Arc<JobSnapshot>>) {
        let mut picture = self.picture();
        for job in jobs {
            picture.put(job);
        }
    }

    /// It was read; it was of this resourceVersion.
    pub fn end(&self, position: u64) {
        let mut picture = self.picture();
        let list = picture.list;
        let Picture { namespaces, graves, .. } = &mut *picture;
        namespaces.retain(|_, jobs| {
            jobs.retain(|_, Entry { job, list: last }| {
                if *last != list {
                    unseen(graves, job);
                }
                *last == list
            });
            jobs.shrink_to(jobs.len() * 2);
            !jobs.is_empty()
        });
        self.moves(&mut picture, Some(position));
    }

    /// A Job was made or changed.
    pub fn apply(&self, job: Arc<JobSnapshot>, position: u64) {
        let mut picture = self.picture();
        picture.put(job);
        self.moves(&mut picture, Some(position));
    }

    /// A Job is gone.
    pub fn delete(&self, job: &JobSnapshot, position: u64) {
        let mut picture = self.picture();
        picture.graves.bury(job, position, Instant::now());
        if let Some(jobs) = picture.namespaces.get_mut(&job.namespace) {
            jobs.remove(&job.name);
            if jobs.is_empty() {
                picture.namespaces.remove(&job.namespace);
            }
        }
        self.moves(&mut picture, Some(position));
    }

    /// Nothing happened up to here that was not told.
    pub fn bookmark(&self, position: u64) {
        self.moves(&mut self.picture(), Some(position));
    }

    fn moves(&self, picture: &mut Picture, position: Option<u64>) {
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
                let before = std::mem::replace(entry, Entry { job, list }).job;
                if before.uid != entry.job.uid {
                    unseen(&mut self.graves, &before);
                }
            }
            None => {
                jobs.insert(job.name.clone(), Entry { job, list });
            }
        }
    }
}

/// A Job is gone, and nobody told when it went. As it was seen last it was seen for certain: that resolves its attempt.
fn unseen(graves: &mut Graves, job: &JobSnapshot) {
    if let Ok(version) = job.resource_version.parse() {
        graves.bury(job, version, Instant::now());
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

    fn uids(cache: &Cache, namespace: Option<&str>) -> Vec<String> {
        let mut uids: Vec<_> = cache.see(namespace).unwrap().1.iter().map(|job| job.uid.clone()).collect();
        uids.sort();
        uids
    }

    #[test]
    fn a_list_replaces_what_was_there_and_has_no_position_before_its_end() {
        let cache = Cache::default();
        assert!(cache.see(None).is_none() && cache.position().is_none());
        cache.begin();
        cache.page(vec![job("ci/a", "1"), job("qa/b", "2")]);
        assert!(cache.see(None).is_none());
        cache.end(7);
        assert_eq!((cache.position(), uids(&cache, None)), (Some(7), vec!["1".to_owned(), "2".to_owned()]));
        cache.begin();
        assert!(cache.position().is_none());
        cache.page(vec![job("ci/a", "3")]);
        cache.end(9);
        assert_eq!((uids(&cache, None), uids(&cache, Some("qa"))), (vec!["3".to_owned()], vec![]));
        assert_eq!(cache.count(), 1);
    }

    #[test]
    fn events_move_the_picture_and_its_position_together() {
        let cache = Cache::default();
        cache.begin();
        cache.end(1);
        cache.apply(job("ci/a", "1"), 2);
        cache.apply(job("ci/a", "1"), 3);
        cache.delete(&job("ci/a", "1"), 4);
        cache.apply(job("ci/a", "2"), 5);
        cache.bookmark(8);
        assert_eq!((cache.position(), uids(&cache, Some("ci"))), (Some(8), vec!["2".to_owned()]));
    }

    #[test]
    fn a_job_that_came_and_went_is_known_to_be_gone() {
        let gone = |cache: &Cache, until| -> Vec<(String, u64)> {
            let graves = cache.gone(["1", "2", "3"], until);
            graves.into_iter().map(|grave| (grave.uid, grave.version)).collect()
        };
        let cache = Cache::default();
        cache.begin();
        cache.end(1);
        cache.apply(job("ci/a", "1"), 2);
        cache.delete(&job("ci/a", "1"), 4);
        assert!(gone(&cache, 3).is_empty(), "such a view may show it yet");
        assert_eq!(gone(&cache, 4), [("1".to_owned(), 4)]);
        // Also one whose deletion was not told of, but that a list no longer shows.
        let seen = JobSnapshot { resource_version: "5".into(), ..(*job("ci/b", "2")).clone() };
        cache.apply(Arc::new(seen), 5);
        cache.begin();
        cache.page(vec![job("ci/b", "3")]);
        cache.end(9);
        assert_eq!(gone(&cache, 9), [("1".to_owned(), 4), ("2".to_owned(), 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_is_waited_for_and_not_for_ever() {
        let cache = Cache::default();
        assert!(!cache.reaches(3, Duration::from_millis(50)).await);
        cache.begin();
        cache.end(2);
        let other = cache.clone();
        let waits = tokio::spawn(async move { other.reaches(3, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        cache.apply(job("ci/a", "1"), 4);
        assert!(waits.await.unwrap());
    }
}
