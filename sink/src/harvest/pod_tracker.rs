//! The pods of Jobs whose results are asked for and not stored yet: their states as last seen, and the logs that were
//! captured before the pods went. In memory only, within a budget: a sink that starts anew knows nothing of pods that
//! were gone before, and the result says so.
//!
//! Bounds: logs of one Job take at most what its policies allow, those of all at most [`HELD`]. Where that is used up,
//! what can be read again (its pod is there) makes room first, then what explains least: pods that succeeded, then the
//! oldest. A log for which there is no room keeps what it has of its head, and [`TAIL`] of its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::result::pods::PodFacts;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{log_buffer::Kept, pod_status},
    model::job_change::Uid,
    object_store::Whole,
};

/// Memory for logs of all Jobs between their capture and their storing, bytes.
pub const HELD: usize = 48 << 20;
/// What is kept of a log's end where there is no room, bytes; so much per stream is on top of [`HELD`].
pub const TAIL: usize = 4 << 10;
/// Pods of one Job that are remembered after they are gone; its result lists fewer.
const GONE_PER_JOB: usize = 1_024;
/// A pod whose Job is not known (the watches are not in step) is forgotten after this long.
const UNKNOWN: Duration = Duration::from_secs(60);

/// The table; clones are the same one.
#[derive(Clone, Debug)]
pub struct Followed {
    inner: Arc<Mutex<Inner>>,
    /// Counts ends of captures.
    ends: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<Uid, Tracked>,
    jobs: HashMap<Uid, OfJob>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct OfJob {
    pods: BTreeSet<Uid>,
    bytes: usize,
    forgotten: usize,
}

#[derive(Clone, Debug)]
struct Tracked {
    job: Uid,
    namespace: String,
    facts: PodFacts,
    created: Option<jiff::Timestamp>,
    deleting: bool,
    since: Instant,
    runs: BTreeMap<String, Run>,
}

/// A run of a container.
#[derive(Clone, Debug)]
enum Run {
    /// It is being read; so much of the budget is taken.
    Open(CancellationToken, usize),
    /// As far as it could be had.
    Held(Content),
    /// It was not kept, for this reason; where the pod is still there, it can be read again.
    Dropped(String),
}

/// What was had of one run's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// What was kept of it.
    pub kept: Kept,
    /// Why (a part of) it could not be had.
    pub lost: Option<String>,
    /// Less was kept than was asked for, since others were in the way: where it can be, it is read again.
    pub squeezed: bool,
}

/// A pod as it was last seen, with what was captured of its logs, by run.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Its states; `gone` where it is.
    pub facts: PodFacts,
    /// Creation.
    pub created: Option<jiff::Timestamp>,
    /// What was captured.
    pub logs: BTreeMap<String, Content>,
}

/// One pod to decide about.
#[derive(Clone, Debug)]
pub struct View {
    /// Its Job.
    pub job: Uid,
    /// Namespace.
    pub namespace: String,
    /// Its states.
    pub facts: PodFacts,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Runs that are being read, or were.
    pub runs: BTreeSet<String>,
}

impl Default for Followed {
    fn default() -> Self {
        Self { inner: Arc::default(), ends: watch::Sender::new(0) }
    }
}

impl Followed {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Takes in a pod as it is now.
    pub fn put(&self, job: &str, pod: &Pod) {
        let mut inner = self.lock();
        let facts = pod_status::of_pod(pod);
        let uid = facts.uid.clone();
        let deleting = pod.metadata.deletion_timestamp.is_some();
        if let Some(known) = inner.pods.get_mut(&uid) {
            // A list may be older than the watch's last word.
            if !known.facts.gone {
                (known.facts, known.deleting) = (facts, deleting);
            }
            return;
        }
        inner.jobs.entry(job.to_owned()).or_default().pods.insert(uid.clone());
        let tracked = Tracked {
            job: job.to_owned(),
            namespace: pod.namespace().unwrap_or_default(),
            facts,
            created: pod.creation_timestamp().map(|t| t.0),
            deleting,
            since: Instant::now(),
            runs: BTreeMap::new(),
        };
        inner.pods.insert(uid, tracked);
    }

    /// A pod is gone; `last` is how it was last, where that is known. Tells whether it was known.
    pub fn gone(&self, uid: &str, last: Option<&Pod>) -> bool {
        let mut inner = self.lock();
        let Some(known) = inner.pods.get_mut(uid) else { return false };
        if let Some(pod) = last {
            known.facts = pod_status::of_pod(pod);
        }
        known.facts.gone = true;
        let job = known.job.clone();
        inner.forget_surplus(&job);
        true
    }

    /// The end of a relist: who was not seen is gone. Gives them.
    pub fn keep(&self, seen: &BTreeSet<Uid>) -> Vec<Uid> {
        let gone: Vec<Uid> = {
            let inner = self.lock();
            let there = inner.pods.iter().filter(|(_, pod)| !pod.facts.gone);
            there.map(|(uid, _)| uid).filter(|uid| !seen.contains(*uid)).cloned().collect()
        };
        gone.iter().for_each(|uid| _ = self.gone(uid, None));
        gone
    }

    /// One pod.
    pub fn view(&self, uid: &str) -> Option<View> {
        let inner = self.lock();
        let pod = inner.pods.get(uid)?;
        Some(View {
            job: pod.job.clone(),
            namespace: pod.namespace.clone(),
            facts: pod.facts.clone(),
            deleting: pod.deleting,
            runs: pod.runs.keys().cloned().collect(),
        })
    }

    /// A Job's pods.
    pub fn of_job(&self, job: &str) -> Vec<Uid> {
        self.lock().jobs.get(job).map(|of| of.pods.iter().cloned().collect()).unwrap_or_default()
    }

    /// How many of a Job's pods are known to be there.
    pub fn live(&self, job: &str) -> usize {
        let inner = self.lock();
        let pods = inner.jobs.get(job).into_iter().flat_map(|of| &of.pods);
        pods.filter_map(|uid| inner.pods.get(uid)).filter(|pod| !pod.facts.gone).count()
    }

    /// Forgets the pods of Jobs that need none any more, and of those nobody has heard of for a while: `needs` says yes
    /// or no, or that it does not know the Job.
    pub fn sweep(&self, needs: impl Fn(&str) -> Option<bool>) {
        let jobs: Vec<Uid> = self.lock().jobs.keys().cloned().collect();
        for job in jobs {
            let needed = needs(&job);
            let mut inner = self.lock();
            let fresh = |pod: &Tracked| pod.since.elapsed() < UNKNOWN;
            let of = inner.jobs.get(&job);
            let young = of.is_some_and(|of| of.pods.iter().any(|uid| inner.pods.get(uid).is_some_and(fresh)));
            if !needed.unwrap_or(young) {
                inner.drop_job(&job);
            }
        }
    }

    /// Forgets a Job's pods; what is being read of them ends.
    pub fn drop_job(&self, job: &str) {
        self.lock().drop_job(job);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut inner = self.lock();
        let jobs: Vec<Uid> = inner.jobs.keys().cloned().collect();
        jobs.iter().for_each(|job| inner.drop_job(job));
    }

    /// Begins to read a run; nothing where somebody did before, or the pod is not known any more. Ends with
    /// [`Self::close`], and when the token says so.
    pub fn open(&self, uid: &str, run: &str) -> Option<CancellationToken> {
        let mut inner = self.lock();
        let pod = inner.pods.get_mut(uid)?;
        if pod.runs.contains_key(run) {
            return None;
        }
        let token = CancellationToken::new();
        pod.runs.insert(run.to_owned(), Run::Open(token.clone(), 0));
        Some(token)
    }

    /// Takes so many more bytes for a run that is being read, of which its Job may have `per_job`; tells whether there
    /// was room.
    pub fn charge(&self, uid: &str, run: &str, bytes: usize, per_job: usize) -> bool {
        let mut inner = self.lock();
        let Some(job) = inner.pods.get(uid).map(|pod| pod.job.clone()) else { return false };
        while inner.jobs.get(&job).is_some_and(|of| of.bytes + bytes > per_job) {
            if !inner.make_room(Some(&job), uid) {
                return false;
            }
        }
        while inner.bytes + bytes > HELD {
            if !inner.make_room(None, uid) {
                return false;
            }
        }
        let Some(Run::Open(_, taken)) = inner.pods.get_mut(uid).and_then(|pod| pod.runs.get_mut(run)) else {
            return false;
        };
        *taken += bytes;
        inner.account(&job, bytes.cast_signed());
        true
    }

    /// Ends the reading of a run.
    pub fn close(&self, uid: &str, run: &str, outcome: Result<Content, String>) {
        {
            let mut inner = self.lock();
            if let Some(pod) = inner.pods.get_mut(uid)
                && let Some(open @ Run::Open(..)) = pod.runs.get_mut(run)
            {
                let Run::Open(_, taken) = open else { return };
                let taken = *taken;
                *open = match outcome {
                    Ok(content) => Run::Held(content),
                    Err(why) => Run::Dropped(why),
                };
                let bytes = open.bytes();
                let job = pod.job.clone();
                inner.account(&job, bytes.cast_signed() - taken.cast_signed());
            }
        }
        self.ends.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Ends what is being read of a pod.
    pub fn cancel(&self, uid: &str) {
        let inner = self.lock();
        for run in inner.pods.get(uid).into_iter().flat_map(|pod| pod.runs.values()) {
            if let Run::Open(token, _) = run {
                token.cancel();
            }
        }
    }

    /// How many logs of a Job are being read.
    fn opened(&self, job: &str) -> usize {
        let inner = self.lock();
        let pods = inner.jobs.get(job).into_iter().flat_map(|of| &of.pods);
        let runs = pods.filter_map(|uid| inner.pods.get(uid)).flat_map(|pod| pod.runs.values());
        runs.filter(|run| matches!(run, Run::Open(..))).count()
    }

    /// Waits for what is being read of a Job that has finished: its containers have ended, so that streams do, too. Where
    /// none of them has for `patience`, the others end with what they have.
    pub async fn settle(&self, job: &str, patience: Duration) {
        let mut ends = self.ends.subscribe();
        let mut before = self.opened(job);
        let mut until = tokio::time::Instant::now() + patience;
        let mut asked = false;
        while before > 0 {
            match tokio::time::timeout_at(until, ends.changed()).await {
                Ok(Ok(())) => {}
                Err(_) if !asked => {
                    asked = true;
                    until += patience;
                    self.of_job(job).iter().for_each(|uid| self.cancel(uid));
                }
                // Nobody reads any more.
                Err(_) | Ok(Err(_)) => return,
            }
            let now = self.opened(job);
            if now < before && !asked {
                until = tokio::time::Instant::now() + patience;
            }
            before = now;
        }
    }

    /// What is held of a Job's pods, by uid, and how many were forgotten because there were too many.
    pub fn held(&self, job: &str) -> (HashMap<Uid, Held>, usize) {
        let inner = self.lock();
        let Some(of) = inner.jobs.get(job) else { return (HashMap::new(), 0) };
        let held = |pod: &Tracked| Held {
            facts: pod.facts.clone(),
            created: pod.created,
            logs: pod.runs.iter().filter_map(|(run, state)| Some((run.clone(), state.content()?))).collect(),
        };
        let pods = of.pods.iter().filter_map(|uid| Some((uid.clone(), held(inner.pods.get(uid)?)))).collect();
        (pods, of.forgotten)
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

impl Content {
    /// Nothing is missing but what the budget of one log leaves out.
    pub fn is_whole(&self) -> bool {
        self.lost.is_none() && !self.squeezed && !matches!(self.kept.whole, Whole::Failed(_))
    }
}

impl Run {
    fn bytes(&self) -> usize {
        match self {
            Self::Open(_, taken) => *taken,
            Self::Held(content) => content.kept.bytes(),
            Self::Dropped(_) => 0,
        }
    }

    fn content(&self) -> Option<Content> {
        match self {
            Self::Open(..) => None,
            Self::Held(content) => Some(content.clone()),
            Self::Dropped(why) => Some(Content { lost: Some(why.clone()), ..Content::default() }),
        }
    }
}

impl Inner {
    fn account(&mut self, job: &str, bytes: isize) {
        self.bytes = self.bytes.saturating_add_signed(bytes);
        if let Some(of) = self.jobs.get_mut(job) {
            of.bytes = of.bytes.saturating_add_signed(bytes);
        }
    }

    fn drop_pod(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        let bytes: usize = pod.runs.values().map(Run::bytes).sum();
        for run in pod.runs.values() {
            if let Run::Open(token, _) = run {
                token.cancel();
            }
        }
        self.account(&pod.job, -bytes.cast_signed());
        if let Some(of) = self.jobs.get_mut(&pod.job) {
            of.pods.remove(uid);
        }
    }

    fn drop_job(&mut self, job: &str) {
        for uid in self.jobs.get(job).map(|of| of.pods.clone()).unwrap_or_default() {
            self.drop_pod(&uid);
        }
        self.jobs.remove(job);
    }

    /// Drops the content that is missed least, of this Job or of all, but for that of one pod; tells whether there was
    /// any.
    fn make_room(&mut self, job: Option<&str>, but: &str) -> bool {
        let candidates: Box<dyn Iterator<Item = &Uid>> = match job {
            Some(job) => Box::new(self.jobs.get(job).into_iter().flat_map(|of| &of.pods)),
            None => Box::new(self.pods.keys()),
        };
        let held = |run: &Run| matches!(run, Run::Held(content) if content.kept.bytes() > 0);
        let least = candidates
            .filter(|uid| *uid != but)
            .filter_map(|uid| Some((uid, self.pods.get(uid)?)))
            .filter(|(_, pod)| pod.runs.values().any(held))
            // Among strangers, only what can be read again: nobody loses a log to another Job.
            .filter(|(_, pod)| job.is_some() || pod.is_readable())
            .min_by_key(|(_, pod)| (!pod.is_readable(), pod.facts.phase != "Succeeded", pod.created))
            .map(|(uid, pod)| (uid.clone(), pod.job.clone()));
        let Some((uid, job)) = least else { return false };
        let mut freed = 0;
        for run in
            self.pods.get_mut(&uid).into_iter().flat_map(|pod| pod.runs.values_mut()).filter(|r| held(r))
        {
            freed += run.bytes();
            let why = "the memory for logs was needed for those of other pods, and then this pod was gone";
            *run = match std::mem::replace(run, Run::Dropped(why.into())) {
                // What is on the disk takes no memory.
                Run::Held(mut content) if matches!(content.kept.whole, Whole::Spooled(_)) => {
                    (content.kept.head, content.kept.tail) = (Vec::new(), Vec::new());
                    content.squeezed = true;
                    Run::Held(content)
                }
                _ => Run::Dropped(why.into()),
            };
        }
        self.account(&job, -freed.cast_signed());
        freed > 0
    }

    fn forget_surplus(&mut self, job: &str) {
        let Some(of) = self.jobs.get(job) else { return };
        if of.pods.len() <= GONE_PER_JOB {
            return;
        }
        let gone =
            of.pods.iter().filter_map(|uid| Some((uid, self.pods.get(uid).filter(|pod| pod.facts.gone)?)));
        let gone: Vec<_> = gone.collect();
        if gone.len() <= GONE_PER_JOB {
            return;
        }
        let least = gone.iter().min_by_key(|(_, pod)| (pod.facts.phase != "Succeeded", pod.created));
        if let Some(uid) = least.map(|(uid, _)| (*uid).clone()) {
            self.drop_pod(&uid);
            if let Some(of) = self.jobs.get_mut(job) {
                of.forgotten += 1;
            }
        }
    }
}

impl Tracked {
    /// Its logs can be read again later.
    fn is_readable(&self) -> bool {
        !self.facts.gone && !self.deleting && self.facts.reason.is_none() && self.facts.disruption.is_none()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, phase: &str, minute: u8) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": uid, "namespace": "ci", "uid": uid,
                "creationTimestamp": format!("2026-01-01T00:{minute:02}:00Z")},
            "spec": {"containers": [{"name": "main"}]}, "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn capture(followed: &Followed, uid: &str, bytes: usize, per_job: usize) -> bool {
        let _token = followed.open(uid, "r").unwrap();
        let room = followed.charge(uid, "r", bytes, per_job);
        let kept = Kept { head: vec![b'x'; if room { bytes } else { 0 }], ..Kept::default() };
        followed.close(uid, "r", Ok(Content { kept, ..Content::default() }));
        room
    }

    fn kept(followed: &Followed, job: &str, uid: &str) -> usize {
        followed.held(job).0[uid].logs.get("r").map_or(0, |content| content.kept.bytes())
    }

    #[test]
    fn within_a_job_what_explains_least_makes_room() {
        let followed = Followed::default();
        for (uid, phase, minute) in [
            ("old", "Failed", 1),
            ("well", "Succeeded", 3),
            ("again", "Failed", 0),
            ("new", "Failed", 4),
            ("last", "Failed", 5),
        ] {
            followed.put("j", &pod(uid, phase, minute));
        }
        for uid in ["old", "well", "again"] {
            assert!(capture(&followed, uid, 10, 30));
        }
        // But for «again», none can be read again.
        for uid in ["old", "well", "new", "last"] {
            followed.gone(uid, None);
        }
        assert!(capture(&followed, "new", 10, 30));
        let sizes = || ["old", "well", "again", "new"].map(|uid| kept(&followed, "j", uid));
        assert_eq!(sizes(), [10, 10, 0, 10]);
        assert!(capture(&followed, "last", 10, 30));
        assert_eq!(sizes(), [10, 0, 0, 10]);
        assert!(followed.held("j").0["well"].logs["r"].lost.is_some());
        assert_eq!(followed.bytes(), 30);
        followed.drop_job("j");
        assert_eq!(followed.bytes(), 0);
    }

    #[test]
    fn nobody_loses_a_log_to_another_job() {
        let followed = Followed::default();
        for (job, uid) in [("a", "gone"), ("b", "there"), ("c", "wants")] {
            followed.put(job, &pod(uid, "Failed", 0));
        }
        assert!(capture(&followed, "gone", HELD / 2, HELD) && capture(&followed, "there", HELD / 2, HELD));
        followed.gone("gone", None);
        assert!(capture(&followed, "wants", HELD / 2, HELD), "what can be read again makes room");
        assert_eq!(kept(&followed, "b", "there"), 0);
        followed.put("d", &pod("more", "Failed", 0));
        followed.gone("wants", None);
        assert!(!capture(&followed, "more", 1, HELD));
        assert_eq!((kept(&followed, "a", "gone"), followed.bytes()), (HELD / 2, HELD));
    }

    #[test]
    fn a_run_is_read_once_and_pods_are_bounded() {
        let followed = Followed::default();
        followed.put("j", &pod("p", "Running", 0));
        assert!(followed.open("p", "r").is_some());
        assert!(followed.open("p", "r").is_none() && followed.open("other", "r").is_none());
        for n in 0..GONE_PER_JOB + 5 {
            let uid = format!("gone-{n}");
            followed.put("j", &pod(&uid, "Failed", 0));
            assert!(followed.gone(&uid, None));
        }
        let (pods, forgotten) = followed.held("j");
        assert_eq!((pods.len(), forgotten), (GONE_PER_JOB + 1, 5));
        assert!(!pods["p"].facts.gone);
        assert_eq!((followed.live("j"), followed.keep(&BTreeSet::new())), (1, vec!["p".to_owned()]));
        followed.sweep(|_| Some(false));
        assert_eq!(followed.of_job("j"), Vec::<Uid>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_streams_gives_them_time_and_then_ends_them() {
        let followed = Followed::default();
        for uid in ["a", "b"] {
            followed.put("j", &pod(uid, "Running", 0));
        }
        let (_a, b) = (followed.open("a", "r").unwrap(), followed.open("b", "r").unwrap());
        let second = Duration::from_secs(1);
        let (own, begun) = (followed.clone(), tokio::time::Instant::now());
        let reader = tokio::spawn(async move {
            tokio::time::sleep(second / 2).await;
            own.close("a", "r", Ok(Content::default()));
            b.cancelled().await;
            own.close("b", "r", Err("it never ended".into()));
        });
        followed.settle("j", second).await;
        assert_eq!(begun.elapsed().as_millis(), 1_500, "the time begins again with each that ends");
        reader.await.unwrap();
        assert_eq!(followed.held("j").0["b"].logs["r"].lost.as_deref(), Some("it never ended"));
        followed.settle("j", second).await;
        assert_eq!(begun.elapsed().as_millis(), 1_500, "nothing to wait for");
    }
}
