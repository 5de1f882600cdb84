//! Reads what there is to know about a Job's pods: their states, and their logs within the budget. What the follower of
//! pods ([`crate::harvest::follower`]) has captured before they went is taken as it is.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::error::{ApiError, CALL_TIMEOUT, call},
    policy::results::{Logs, LogsMode},
    result::{
        manifest::ObjectsFacts,
        pods::{ContainerFacts, PodFacts},
    },
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, LogParams},
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{
        at_risk::How,
        captured::{Captured, CapturedLog, CapturedPod},
        log_buffer::{self, Kept},
        node_limits::{Memory, Node, Turns},
        pod_status,
        pod_tracker::{Content, Followed, Held, TAIL},
    },
    model::job_change::Uid,
    object_store::{Objects, Overflow, Whole},
};

/// Label that the Job controller puts on pods (`k8s.io/api/batch/v1`, `ControllerUidLabel`).
pub const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
/// Log streams at a time, over all: those of 32 nodes. The apiserver's fairness does not throttle them.
const STREAMS: usize = 128;
/// The same of logs that were not had at once.
const LATE_STREAMS: usize = 64;
/// Logs that are followed until their containers end: now …
const FOLLOWS_NOW: usize = 256;
/// … and those for which that may take long.
const FOLLOWS_LONG: usize = 128;
/// What is being followed when its Job has finished is given so long, again with each log that ends.
const SETTLE: Duration = Duration::from_secs(3);
/// A log of which nothing comes for this long is put off …
const AT_ONCE: Duration = Duration::from_millis(500);
/// … and so is one that is not read within this.
const LONG_READ: Duration = Duration::from_secs(10);
/// A log that was put off, and of which nothing comes for this long, is left.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a node that has not answered for a while.
const PATIENCE_WITH_MUTE: Duration = Duration::from_secs(2);
/// All of a Job's logs are read within this time from its turn, or put off; those that were, within the same again, or
/// what is missing is recorded as lost.
const DEADLINE: Duration = Duration::from_secs(60);
/// Tries per log, for answers that may be better the next time.
const TRIES: u32 = 3;
/// Why a log is not kept although it could have been.
const USED_UP: &str = "the log budget of the policies for one Job was used up before";
/// Bytes that are kept of a log for which nothing is left of the budget, until it is known what it is.
const LOOK: usize = 1 << 10;
/// Pods whose containers are read at a time.
const PODS_AT_A_TIME: usize = 4;

/// Which of a node's streams a log is read by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Those for what comes at once.
    Quick,
    /// Those for what does not.
    Late,
}

/// Reads pods and logs; clones share their bounds.
#[derive(Clone)]
pub struct Capturer {
    client: Client,
    all: Arc<Semaphore>,
    all_late: Arc<Semaphore>,
    follows: Arc<[Semaphore; 2]>,
    turns: Turns,
    objects: Option<Objects>,
}

impl Capturer {
    /// One per process.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            all: Arc::new(Semaphore::new(STREAMS)),
            all_late: Arc::new(Semaphore::new(LATE_STREAMS)),
            follows: Arc::new([Semaphore::new(FOLLOWS_NOW), Semaphore::new(FOLLOWS_LONG)]),
            turns: Turns::default(),
            objects: None,
        }
    }

    /// Where there is a store for them, logs over the budget go there whole.
    #[must_use]
    pub fn with_objects(self, objects: Option<Objects>) -> Self {
        Self { objects, ..self }
    }

    fn overflow(&self) -> Overflow {
        Overflow::into(self.objects.as_ref().map(Objects::spool))
    }

    /// Removes what an earlier try of a stored harvest left among its objects.
    pub async fn tidy(&self, job: &JobSnapshot, kept: &BTreeSet<String>) {
        let Some(objects) = self.objects.as_ref().filter(|_| !kept.is_empty()) else { return };
        if let Err(why) = objects.tidy(&job.namespace, &job.uid, kept).await {
            tracing::debug!(job = job.key(), "objects of an earlier try stay as long as the result: {why}");
        }
    }

    /// Removes a Job's objects again; what stays behind is swept.
    pub async fn forget_objects(&self, job: &JobSnapshot, captured: &mut Captured) {
        let Some(objects) = self.objects.as_ref().filter(|_| captured.objects.take().is_some()) else {
            return;
        };
        let logs = captured.pods.iter_mut().flat_map(|pod| &mut pod.logs);
        logs.for_each(|log| log.kept.whole = Whole::Nowhere);
        captured.tell();
        if let Err(why) = objects.remove(&job.namespace, &job.uid).await {
            tracing::warn!(job = job.key(), "whole logs that must not be stored stay for now: {why}");
        }
    }

    /// Uploads what was spooled of a Job's logs.
    async fn store_whole(&self, job: (&str, &str), captured: &mut Captured) {
        let Some(objects) = &self.objects else { return };
        let deadline = objects.deadline();
        let mut uploads = Vec::new();
        for CapturedPod { facts, logs, .. } in &mut captured.pods {
            uploads.extend(logs.iter_mut().map(|log| log.upload(objects, job, &facts.name, deadline)));
        }
        futures::stream::iter(uploads).buffer_unordered(PODS_AT_A_TIME).collect::<()>().await;
        captured.tell();
        let mut cut =
            captured.pods.iter().flat_map(|pod| &pod.logs).filter_map(|log| match &log.kept.whole {
                Whole::Failed(why) => Some(why),
                _ => None,
            });
        if let Some(why) = cut.next() {
            let logs = 1 + cut.count();
            tracing::warn!(namespace = job.0, job_uid = job.1, logs, "cut, not stored whole: {why}");
        }
        let (count, bytes) =
            captured.whole().fold((0, 0), |(count, bytes), whole| (count + 1, bytes + whole.bytes));
        let url = objects.folder_url(job.0, job.1);
        captured.objects = (count > 0).then_some(ObjectsFacts { url, count, bytes });
    }

    /// Keeps at most `max` bytes of a log; one that was whole before is spooled.
    async fn shrink(&self, kept: &mut Kept, max: usize) {
        if let Some(objects) = &self.objects
            && kept.left_out() == 0
            && kept.bytes() > max
        {
            kept.whole = objects.spool().take(&kept.head).await;
        }
        kept.shrink(max);
    }

    async fn held(&self, run: Run<'_>, content: &Content, max: usize) -> CapturedLog {
        let mut kept = content.kept.clone();
        self.shrink(&mut kept, max).await;
        CapturedLog {
            container: run.container.to_owned(),
            previous: run.previous,
            run: run.id.to_owned(),
            kept,
            lost: content.lost.clone(),
            put_off: false,
        }
    }

    /// The pods of a Job.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub async fn pods_of(&self, namespace: &str, job_uid: &str) -> Result<Vec<Pod>, ApiError> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let mut params = ListParams::default().labels(&format!("{CONTROLLER_UID}={job_uid}")).limit(200);
        let mut pods = Vec::new();
        loop {
            let page = call("list pods", api.list(&params)).await?;
            // The label can be on pods of others; the owner reference cannot.
            let own = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.uid == job_uid);
            pods.extend(page.items.into_iter().filter(own).map(trim));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        Ok(pods)
    }

    /// All that can be had of a finished Job's pods: of those that are there, and of those that were followed. Logs are
    /// read within the Job's budget, which is spent in the order of weight, once it is this Job's turn. The memory is to
    /// be held as long as the logs are.
    ///
    /// # Errors
    /// Where the pods cannot be listed.
    pub async fn of_job(
        &self,
        namespace: &str,
        job_uid: &str,
        budget: &Logs,
        followed: &Followed,
    ) -> Result<(Captured, Memory), ApiError> {
        followed.settle(job_uid, SETTLE).await;
        let there = self.pods_of(namespace, job_uid).await?;
        let (held, forgotten) = followed.held(job_uid);
        let mut subjects: Vec<Subject> = there.into_iter().map(|pod| Subject::There(Box::new(pod))).collect();
        let listed: HashSet<Uid> = subjects.iter().filter_map(Subject::uid).collect();
        let gone = held.iter().filter(|(uid, _)| !listed.contains(*uid));
        subjects.extend(gone.map(|(_, held)| Subject::Gone(Box::new(held.clone()))));
        subjects.sort_by(|a, b| pod_status::by_weight(&a.weight(), &b.weight()));
        let logs = match budget.mode {
            LogsMode::HeadAndTail => subjects.iter().map(Subject::logs).sum(),
            LogsMode::None => 0,
        };
        // Most Jobs have one pod. Where there are more, the node of the first stands in for the others: their streams are
        // bounded per node all the same.
        let node = subjects.iter().find_map(Subject::node).map(str::to_owned);
        let most = budget.per_job().min(budget.per_container().saturating_mul(logs));
        let turn = self.turns.wait(namespace, node.as_deref().filter(|_| logs > 0), most).await;
        let deadline = Instant::now() + DEADLINE;
        let left = Arc::new(Mutex::new(most));
        let held = Arc::new(held);
        let captured = futures::stream::iter(subjects).map(|subject| {
            let (left, held) = (left.clone(), held.clone());
            async move {
                match subject {
                    Subject::There(pod) => self.pod(&pod, budget, &held, &left, deadline).await,
                    Subject::Gone(pod) => self.gone_pod(*pod, budget, &left).await,
                }
            }
        });
        let mut pods: Vec<_> = captured.buffered(PODS_AT_A_TIME).collect().await;
        let mut memory = turn.end(kept_of(&pods));
        let late = pods.iter().flat_map(|pod| &pod.logs).filter(|log| log.put_off).count();
        if late > 0 {
            let most = remaining(&left).min(budget.per_container().saturating_mul(late));
            let had = kept_of(&pods);
            let (turn, most) = self.turns.wait_late(node.as_deref().unwrap_or_default(), most).await;
            let (left, deadline) = (Mutex::new(most), Instant::now() + DEADLINE);
            let again = pods.into_iter().map(|pod| self.late(pod, namespace, budget, &held, &left, deadline));
            pods = futures::stream::iter(again).buffered(PODS_AT_A_TIME).collect().await;
            memory = memory.and(turn.end(kept_of(&pods).saturating_sub(had)));
        }
        // From here on the node is free for others, however slow the store is.
        let mut captured = Captured { pods, forgotten, objects: None };
        self.store_whole((namespace, job_uid), &mut captured).await;
        Ok((captured, memory))
    }

    /// Reads what was put off of a pod.
    async fn late(
        &self,
        mut pod: CapturedPod,
        namespace: &str,
        budget: &Logs,
        held: &HashMap<Uid, Held>,
        left: &Mutex<usize>,
        deadline: Instant,
    ) -> CapturedPod {
        if pod.logs.iter().all(|log| !log.put_off) {
            return pod;
        }
        let held = held.get(&pod.facts.uid);
        let node = pod.facts.node.clone().unwrap_or_default();
        let mut contents = pod.logs.iter_mut();
        for container in &mut pod.facts.containers {
            for (at, (previous, id)) in runs(container).into_iter().enumerate() {
                let Some(log) = contents.next().filter(|log| log.put_off) else { continue };
                let run = Run {
                    namespace,
                    pod: &pod.facts.name,
                    uid: &pod.facts.uid,
                    container: &container.name,
                    previous,
                    id: &id,
                };
                *log = self.within(run, &node, budget, held, left, (Lane::Late, deadline)).await;
                if let Some(facts) = container.logs.get_mut(at) {
                    *facts = log.facts();
                }
            }
        }
        pod
    }

    /// Reads one run's log out of what is left of the Job's budget.
    async fn within(
        &self,
        run: Run<'_>,
        node: &str,
        budget: &Logs,
        held: Option<&Held>,
        left: &Mutex<usize>,
        (lane, deadline): (Lane, Instant),
    ) -> CapturedLog {
        // Reserved whole and given back in part: what is read at the same time never exceeds the Job's budget.
        let granted = take(left, budget.per_container());
        let known = held.and_then(|held| held.logs.get(run.id));
        let log = self.run(run, node, granted, known, lane, deadline).await;
        give(left, granted.saturating_sub(log.kept.bytes()));
        log
    }

    /// Reads one run's log, but for what is held of it already.
    async fn run(
        &self,
        run: Run<'_>,
        node: &str,
        granted: usize,
        known: Option<&Content>,
        lane: Lane,
        deadline: Instant,
    ) -> CapturedLog {
        let wanted = granted > 0 || self.objects.is_some();
        let read = match known {
            Some(content) if content.is_whole() && wanted => return self.held(run, content, granted).await,
            _ => self.log(run, node, granted, lane, deadline).await,
        };
        match known {
            // A part is better than none, and the older reason is the better one.
            Some(part)
                if wanted && !read.put_off && read.lost.is_some() && read.kept.length < part.kept.length =>
            {
                self.held(run, part, granted).await
            }
            _ => read,
        }
    }

    /// Reads the logs of a pod that is there, but for what is held of them already.
    async fn pod(
        &self,
        pod: &Pod,
        budget: &Logs,
        held: &HashMap<Uid, Held>,
        left: &Mutex<usize>,
        deadline: Instant,
    ) -> CapturedPod {
        let mut facts = pod_status::of_pod(pod);
        let held = held.get(&facts.uid);
        let mut contents = Vec::new();
        if budget.mode == LogsMode::HeadAndTail {
            let node = facts.node.clone().unwrap_or_default();
            for container in &mut facts.containers {
                for (previous, id) in runs(container) {
                    let (name, uid) = ((pod.name_any(), pod.namespace().unwrap_or_default()), &facts.uid);
                    let run = Run {
                        pod: &name.0,
                        namespace: &name.1,
                        uid,
                        container: &container.name,
                        previous,
                        id: &id,
                    };
                    let log = self.within(run, &node, budget, held, left, (Lane::Quick, deadline)).await;
                    container.logs.push(log.facts());
                    contents.push(log);
                }
            }
        }
        CapturedPod { facts, created: pod.creation_timestamp().map(|t| t.0), logs: contents }
    }

    /// Reads one run's log before its Job has finished, until `enough` is; `room` is asked before so many more bytes are
    /// kept.
    ///
    /// # Errors
    /// Tells why there is nothing of it.
    pub async fn early(
        &self,
        run: Run<'_>,
        node: &str,
        how: How,
        max: usize,
        mut room: impl FnMut(usize) -> bool,
        enough: CancellationToken,
    ) -> Result<Content, String> {
        let of_node = self.turns.node(node);
        let mut part: Option<Content> = None;
        let mut why = String::new();
        for attempt in 1..=TRIES {
            // Where nothing comes at once, the next try stands in nobody's way.
            let quick = attempt == 1 && !of_node.is_late(run.namespace);
            let lane = if quick { Lane::Quick } else { Lane::Late };
            let one = self.try_early(&run, &of_node, (how, lane), max, &mut room, &enough);
            match one.await {
                Ok(content) if content.lost.is_none() => return Ok(content),
                Ok(content) => {
                    if part.as_ref().is_none_or(|known| known.kept.length <= content.kept.length) {
                        part = Some(content);
                    }
                }
                Err(fault) => {
                    why = fault.why;
                    if !fault.again {
                        break;
                    }
                }
            }
            if attempt == TRIES || enough.is_cancelled() || (how == How::Read && of_node.is_mute()) {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(300 * u64::from(attempt))) => {}
                () = enough.cancelled() => break,
            }
        }
        part.ok_or(why)
    }

    async fn try_early(
        &self,
        run: &Run<'_>,
        node: &Node,
        (how, lane): (How, Lane),
        max: usize,
        room: &mut impl FnMut(usize) -> bool,
        enough: &CancellationToken,
    ) -> Result<Content, Fault> {
        let stopped = Fault::last;
        let closed = |_| Fault::last("the sink is stopping");
        let permits = async {
            let (of_node, of_all) = match how {
                How::Read if lane == Lane::Quick => (&node.streams, &*self.all),
                How::Read => (&node.late_streams, &*self.all_late),
                How::FollowNow => (&node.follows, &self.follows[0]),
                How::FollowLong => (&node.follows, &self.follows[1]),
            };
            // Who may take long holds no place on a node while it waits.
            let of_all = of_all.acquire().await.map_err(closed)?;
            Ok((of_all, of_node.acquire().await.map_err(closed)?))
        };
        let _permits = tokio::select! {
            permits = permits => permits?,
            () = enough.cancelled() => {
                return Err(stopped("too many logs were read at that time, and then there was none left"));
            }
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), run.namespace);
        let params = LogParams {
            container: Some(run.container.to_owned()),
            previous: run.previous,
            follow: how != How::Read,
            ..LogParams::default()
        };
        let open = async {
            if how != How::Read {
                // The kubelet sends its first byte with the container's, which may be never.
                return Some(api.log_stream(run.pod, &params).await);
            }
            let patience = match lane {
                Lane::Quick => AT_ONCE,
                Lane::Late if node.is_mute() => PATIENCE_WITH_MUTE,
                Lane::Late => CALL_TIMEOUT,
            };
            tokio::time::timeout(patience, api.log_stream(run.pod, &params)).await.ok()
        };
        let opened = tokio::select! {
            opened = open => opened,
            () = enough.cancelled() => {
                return Err(stopped("the node had not answered by the time the pod was gone or its Job had finished"));
            }
        };
        let stream = match opened {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return Err(Fault::of(ApiError::new("read the log", error))),
            None => return Err(node_said_nothing(node, run.namespace, lane)),
        };
        node.answered(run.namespace);
        // Only who follows waits for more.
        let until = async {
            match how {
                How::Read => _ = tokio::time::timeout(LONG_READ, enough.cancelled()).await,
                _ => enough.cancelled().await,
            }
        };
        let (mut kept, lost) = log_buffer::follow(stream, max, self.overflow(), room, TAIL, until).await;
        kept.cut_at_characters();
        if kept.length < 512 && log_buffer::is_excuse(&kept.head) {
            return Err(Fault::of_excuse(&kept));
        }
        tracing::trace!(
            pod = run.uid,
            container = run.container,
            bytes = kept.length,
            ?how,
            "captured a log"
        );
        Ok(Content { kept, lost, squeezed: false })
    }

    async fn log(&self, run: Run<'_>, node: &str, max: usize, lane: Lane, deadline: Instant) -> CapturedLog {
        let mut log = CapturedLog {
            container: run.container.to_owned(),
            previous: run.previous,
            run: run.id.to_owned(),
            ..CapturedLog::default()
        };
        if max == 0 && self.objects.is_none() {
            log.lost = Some(USED_UP.to_owned());
            return log;
        }
        let of_node = self.turns.node(node);
        if lane == Lane::Quick && of_node.is_late(run.namespace) {
            log.put_off = true;
            return log;
        }
        for attempt in 1..=TRIES {
            if let Some(others) = of_node.hopeless() {
                let why = "does not answer calls for logs, and other Jobs wait for it";
                log.lost = Some(format!("node {node} {why} ({others} now)"));
                return log;
            }
            let tried = self.try_log(&run, &of_node, max, lane, deadline);
            match tokio::time::timeout_at(deadline, tried).await {
                Ok(Ok((_, Some(_))) | Err(Fault { silent: true, .. })) | Err(_) if lane == Lane::Quick => {
                    log.put_off = true;
                    return log;
                }
                Ok(Ok((kept, early))) => {
                    (log.kept, log.lost) = (kept, early);
                    self.shrink(&mut log.kept, max).await;
                    return log;
                }
                Ok(Err(fault)) if fault.again && attempt < TRIES && !of_node.is_mute() => {
                    tokio::time::sleep(Duration::from_millis(300 * u64::from(attempt))).await;
                }
                Ok(Err(fault)) => {
                    log.lost = Some(fault.why);
                    return log;
                }
                Err(_) => {
                    log.lost = Some(format!("not read within {} s", DEADLINE.as_secs()));
                    return log;
                }
            }
        }
        log
    }

    async fn try_log(
        &self,
        run: &Run<'_>,
        node: &Node,
        max: usize,
        lane: Lane,
        deadline: Instant,
    ) -> Result<(Kept, Option<String>), Fault> {
        // Closed only at the end of the process.
        let closed = |_| Fault::last("the sink is stopping");
        let (of_node, of_all) = match lane {
            Lane::Quick => (&node.streams, &*self.all),
            Lane::Late => (&node.late_streams, &*self.all_late),
        };
        let _node = of_node.acquire().await.map_err(closed)?;
        let _all = of_all.acquire().await.map_err(closed)?;
        let api = Api::<Pod>::namespaced(self.client.clone(), run.namespace);
        let params = LogParams {
            container: Some(run.container.to_owned()),
            previous: run.previous,
            follow: false,
            ..LogParams::default()
        };
        let (patience, answer_within, deadline) = match lane {
            Lane::Quick => (AT_ONCE, AT_ONCE, deadline.min(Instant::now() + LONG_READ)),
            Lane::Late if node.is_mute() => (PATIENCE_WITH_MUTE, PATIENCE_WITH_MUTE, deadline),
            Lane::Late => (PATIENCE, CALL_TIMEOUT, deadline),
        };
        let stream = match tokio::time::timeout(answer_within, api.log_stream(run.pod, &params)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Fault::of(ApiError::new("read the log", error))),
            Err(_) => return Err(node_said_nothing(node, run.namespace, lane)),
        };
        let max = if self.objects.is_some() { max.max(LOOK) } else { max };
        let (mut kept, early) = log_buffer::read(stream, max, self.overflow(), patience, deadline).await;
        if early.is_some() && kept.length == 0 {
            // What was not read is told by `early`.
            let _: Fault = node_said_nothing(node, run.namespace, lane);
        } else {
            node.answered(run.namespace);
        }
        kept.cut_at_characters();
        if kept.length < 512 && log_buffer::is_excuse(&kept.head) {
            return Err(Fault::of_excuse(&kept));
        }
        tracing::trace!(pod = run.uid, container = run.container, bytes = kept.length, "read a log");
        Ok((kept, early))
    }

    /// What is held of a pod that is gone.
    async fn gone_pod(&self, pod: Held, budget: &Logs, left: &Mutex<usize>) -> CapturedPod {
        let Held { mut facts, created, logs } = pod;
        // It may be on its way in the watch still.
        facts.gone = true;
        let mut contents = Vec::new();
        if budget.mode == LogsMode::HeadAndTail {
            for container in &mut facts.containers {
                for (previous, id) in runs(container) {
                    let granted = take(left, budget.per_container());
                    let run = Run {
                        namespace: "",
                        pod: "",
                        uid: "",
                        container: &container.name,
                        previous,
                        id: &id,
                    };
                    let nothing = || Content {
                        lost: Some("the pod was gone before its log was read".to_owned()),
                        ..Content::default()
                    };
                    let content = logs.get(&id).cloned().unwrap_or_else(nothing);
                    let mut log = self.held(run, &content, granted).await;
                    if granted == 0 && content.kept.length > 0 && log.kept.whole == Whole::Nowhere {
                        log.lost = Some(USED_UP.to_owned());
                    }
                    give(left, granted.saturating_sub(log.kept.bytes()));
                    container.logs.push(log.facts());
                    contents.push(log);
                }
            }
        }
        CapturedPod { facts, created, logs: contents }
    }
}

/// One run of one container.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Pod.
    pub pod: &'a str,
    /// The pod's uid.
    pub uid: &'a str,
    /// Container.
    pub container: &'a str,
    /// The run before the last restart.
    pub previous: bool,
    /// The runtime's name for it.
    pub id: &'a str,
}

/// A pod to be captured.
enum Subject {
    There(Box<Pod>),
    Gone(Box<Held>),
}

impl Subject {
    fn uid(&self) -> Option<Uid> {
        match self {
            Self::There(pod) => pod.uid(),
            Self::Gone(held) => Some(held.facts.uid.clone()),
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::There(pod) => pod.spec.as_ref()?.node_name.as_deref(),
            Self::Gone(_) => None,
        }
    }

    fn weight(&self) -> pod_status::Weight {
        match self {
            Self::There(pod) => pod_status::weight(pod),
            Self::Gone(held) => {
                // It was gone before it could end well.
                let failed = held.facts.phase != "Succeeded";
                pod_status::Weight {
                    failed,
                    gone: true,
                    created: held.created,
                    name: held.facts.name.clone(),
                }
            }
        }
    }

    /// How many logs it has.
    fn logs(&self) -> usize {
        let count = |facts: &PodFacts| facts.containers.iter().map(|container| runs(container).len()).sum();
        match self {
            Self::There(pod) => count(&pod_status::of_pod(pod)),
            Self::Gone(held) => count(&held.facts),
        }
    }
}

struct Fault {
    why: String,
    again: bool,
    /// There was no answer.
    silent: bool,
}

fn node_said_nothing(node: &Node, namespace: &str, lane: Lane) -> Fault {
    node.hung(namespace);
    // A moment says nothing about a node.
    if lane == Lane::Late {
        node.said_nothing();
    }
    Fault { why: "the node gave no answer in time".into(), again: true, silent: true }
}

impl Fault {
    fn last(why: &str) -> Self {
        Self { why: why.into(), again: false, silent: false }
    }

    fn of(error: ApiError) -> Self {
        let why = match &error {
            ApiError::Refused { message, .. } => message.clone(),
            _ => error.to_string(),
        };
        Self { why, again: error.is_transient(), silent: false }
    }

    fn of_excuse(kept: &Kept) -> Self {
        Self::last(String::from_utf8_lossy(&kept.head).trim_end())
    }
}

/// The runs of a container that have a log: whether it was the one before, and which.
fn runs(container: &ContainerFacts) -> Vec<(bool, String)> {
    let ran = matches!(container.state.phase.as_str(), "terminated" | "running");
    let before = container.last_state.as_ref().map(|state| (true, state.id.clone()));
    before.into_iter().chain(ran.then(|| (false, container.state.id.clone()))).collect()
}

fn kept_of(pods: &[CapturedPod]) -> usize {
    pods.iter().flat_map(|pod| &pod.logs).map(|log| log.kept.bytes()).sum()
}

fn remaining(left: &Mutex<usize>) -> usize {
    *left.lock()
}

fn take(left: &Mutex<usize>, wish: usize) -> usize {
    let mut left = left.lock();
    let granted = wish.min(*left);
    *left -= granted;
    granted
}

fn give(left: &Mutex<usize>, back: usize) {
    *left.lock() += back;
}

/// Drops what is not needed of a pod, at once: a Job can have a thousand of them.
pub fn trim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        spec.volumes = None;
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in containers {
            container.env = None;
            container.env_from = None;
            container.args = None;
            container.command = None;
        }
    }
    pod
}
