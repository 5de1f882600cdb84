//! All tracked pods and the memory of their logs.
//!
//! The logs of one Job use at most what its policies allow, those of all Jobs at most [`EARLY_MEMORY`]. When that is used
//! up, logs that can be read again (their pods exist) are dropped first, then the least relevant ones: those of pods that
//! succeeded, then the oldest. No Job loses a log that cannot be read again to another, unless its namespace holds more than
//! that of the other: kept logs of a Job whose other pods are on a silent node may stay for days.

use std::collections::{BTreeSet, HashMap};

use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{
        tracked_pod::{LogCapture, TrackedPod},
        tuning::{DELETED_PODS_PER_JOB, EARLY_MEMORY},
    },
    model::job_change::Uid,
    object_store::FullLog,
};

/// All tracked pods, and the bytes of their logs.
#[derive(Debug, Default)]
pub(super) struct TrackerState {
    pub(super) pods: HashMap<Uid, TrackedPod>,
    pub(super) jobs: HashMap<Uid, PodsOfJob>,
    pub(super) bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct PodsOfJob {
    pub(super) pods: BTreeSet<Uid>,
    pub(super) bytes: usize,
    pub(super) dropped_pods: usize,
}

/// Whose logs make room for others.
#[derive(Clone, Copy)]
enum RoomFrom<'a> {
    Job(&'a str),
    Namespace(&'a str),
    /// Logs that can be read again, of all Jobs.
    Readable,
}

impl TrackerState {
    pub(super) fn account(&mut self, job: &str, bytes: isize) {
        self.bytes = self.bytes.saturating_add_signed(bytes);
        if let Some(of) = self.jobs.get_mut(job) {
            of.bytes = of.bytes.saturating_add_signed(bytes);
        }
    }

    pub(super) fn reserve(&mut self, uid: &str, run: &str, bytes: usize, per_job: usize) -> bool {
        let Some((job, namespace)) = self.pods.get(uid).map(|pod| (pod.job.clone(), pod.namespace.clone()))
        else {
            return false;
        };
        while self.jobs.get(&job).is_some_and(|of| of.bytes + bytes > per_job) {
            if !self.make_room(RoomFrom::Job(&job), uid) {
                return false;
            }
        }
        while self.bytes + bytes > EARLY_MEMORY {
            let has_room = self.make_room(RoomFrom::Readable, uid)
                || self
                    .larger_namespace(&namespace, bytes)
                    .is_some_and(|larger| self.make_room(RoomFrom::Namespace(&larger), uid));
            if !has_room {
                return false;
            }
        }
        let Some(LogCapture::Open(_, taken)) = self.pods.get_mut(uid).and_then(|pod| pod.runs.get_mut(run))
        else {
            return false;
        };
        *taken += bytes;
        self.account(&job, bytes.cast_signed());
        true
    }

    /// Begins to keep a log of this length that was read after its Job finished; returns false if the pod is not tracked, or
    /// as much of that run is known.
    pub(super) fn begin_keeping(&mut self, uid: &str, run: &str, length: u64) -> bool {
        let Some(pod) = self.pods.get_mut(uid) else { return false };
        match pod.runs.get(run) {
            Some(LogCapture::Open(..)) => return false,
            Some(LogCapture::Done(known)) if known.is_complete() || known.excerpt.length > length => {
                return false;
            }
            _ => {}
        }
        let open = LogCapture::Open(CancellationToken::new(), 0);
        let freed = pod.runs.insert(run.to_owned(), open).map_or(0, |known| known.bytes());
        let job = pod.job.clone();
        self.account(&job, -freed.cast_signed());
        true
    }

    pub(super) fn drop_pod(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        let bytes: usize = pod.runs.values().map(LogCapture::bytes).sum();
        for run in pod.runs.values() {
            if let LogCapture::Open(token, _) = run {
                token.cancel();
            }
        }
        self.account(&pod.job, -bytes.cast_signed());
        if let Some(of) = self.jobs.get_mut(&pod.job) {
            of.pods.remove(uid);
        }
    }

    pub(super) fn drop_job(&mut self, job: &str) {
        for uid in self.jobs.get(job).map(|of| of.pods.clone()).unwrap_or_default() {
            self.drop_pod(&uid);
        }
        self.jobs.remove(job);
    }

    /// The namespace that holds most, if that is more than `namespace` holds with `bytes` more.
    fn larger_namespace(&self, namespace: &str, bytes: usize) -> Option<String> {
        let mut held: HashMap<&str, usize> = HashMap::new();
        for pod in self.pods.values() {
            *held.entry(&pod.namespace).or_default() +=
                pod.runs.values().map(LogCapture::bytes).sum::<usize>();
        }
        let own = held.get(namespace).copied().unwrap_or_default();
        let (largest, most) = held.into_iter().max_by_key(|(name, bytes)| (*bytes, *name))?;
        (most > own + bytes).then(|| largest.to_owned())
    }

    /// Drops the logs of the least relevant of these pods, but not of pod `except`; returns whether there was one.
    fn make_room(&mut self, from: RoomFrom<'_>, except: &str) -> bool {
        let candidates: Box<dyn Iterator<Item = &Uid>> = match from {
            RoomFrom::Job(job) => Box::new(self.jobs.get(job).into_iter().flat_map(|of| &of.pods)),
            RoomFrom::Namespace(_) | RoomFrom::Readable => Box::new(self.pods.keys()),
        };
        let has_bytes =
            |run: &LogCapture| matches!(run, LogCapture::Done(content) if content.excerpt.bytes() > 0);
        let least = candidates
            .filter(|uid| *uid != except)
            .filter_map(|uid| Some((uid, self.pods.get(uid)?)))
            .filter(|(_, pod)| pod.runs.values().any(has_bytes))
            .filter(|(_, pod)| match from {
                RoomFrom::Job(_) => true,
                RoomFrom::Namespace(namespace) => pod.namespace == namespace,
                RoomFrom::Readable => pod.is_readable(),
            })
            .min_by_key(|(_, pod)| (!pod.is_readable(), pod.facts.phase != "Succeeded", pod.created))
            .map(|(uid, pod)| (uid.clone(), pod.job.clone()));
        let Some((uid, job)) = least else { return false };
        let mut freed = 0;
        for run in
            self.pods.get_mut(&uid).into_iter().flat_map(|pod| pod.runs.values_mut()).filter(|r| has_bytes(r))
        {
            freed += run.bytes();
            let why = "its memory was needed for logs of other pods, and the pod was deleted before it was read again";
            *run = match std::mem::replace(run, LogCapture::Dropped(why.into())) {
                // The spooled log stays: it takes no memory.
                LogCapture::Done(mut content) if matches!(content.excerpt.full, FullLog::Spooled(_)) => {
                    (content.excerpt.head, content.excerpt.tail) = (Vec::new(), Vec::new());
                    content.truncated = true;
                    LogCapture::Done(content)
                }
                _ => LogCapture::Dropped(why.into()),
            };
        }
        self.account(&job, -freed.cast_signed());
        freed > 0
    }

    pub(super) fn drop_surplus(&mut self, job: &str) {
        let Some(of) = self.jobs.get(job) else { return };
        if of.pods.len() <= DELETED_PODS_PER_JOB {
            return;
        }
        let gone =
            of.pods.iter().filter_map(|uid| Some((uid, self.pods.get(uid).filter(|pod| pod.facts.gone)?)));
        let gone: Vec<_> = gone.collect();
        if gone.len() <= DELETED_PODS_PER_JOB {
            return;
        }
        let least = gone.iter().min_by_key(|(_, pod)| (pod.facts.phase != "Succeeded", pod.created));
        if let Some(uid) = least.map(|(uid, _)| (*uid).clone()) {
            self.drop_pod(&uid);
            if let Some(of) = self.jobs.get_mut(job) {
                of.dropped_pods += 1;
            }
        }
    }
}
