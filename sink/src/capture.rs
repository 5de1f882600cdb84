//! Reads what there is to know about a Job's pods: their states, and their logs within the budget.
//!
//! It takes pods, whoever found them: today those that are there when the Job has finished; a follower of pods at risk
//! can hand its own to [`Capturer::pod`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use job_handler_shared::policy::{Logs, LogsMode};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, LogParams},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    api::{ApiError, CALL_TIMEOUT, call},
    facts,
    logs::{self, Kept},
    manifest::{ContainerFacts, LogFacts, PodFacts},
    turns::{Memory, Node, Turns},
};

/// Label that the Job controller puts on pods (`k8s.io/api/batch/v1`, `ControllerUidLabel`).
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
/// Log streams at a time, over all: those of 32 nodes. The apiserver's fairness does not throttle them.
const STREAMS: usize = 128;
/// A log stream without a byte for this long is left.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a node that has not answered for a while.
const PATIENCE_WITH_MUTE: Duration = Duration::from_secs(2);
/// All of a Job's logs are read within this time from its turn, or what is missing is recorded as lost.
const DEADLINE: Duration = Duration::from_secs(60);
/// Tries per log, for answers that may be better the next time.
const TRIES: u32 = 3;
/// Pods whose containers are read at a time.
const PODS_AT_A_TIME: usize = 4;

/// A pod, and what could be had of its logs.
#[derive(Clone, Debug, Default)]
pub struct CapturedPod {
    /// Its states; the facts about logs are in here, too.
    pub facts: PodFacts,
    /// Creation, for the order of sections.
    pub created: Option<jiff::Timestamp>,
    /// Contents, in the order of the containers' facts.
    pub logs: Vec<CapturedLog>,
}

/// One log's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedLog {
    /// Container.
    pub container: String,
    /// The run before the last restart.
    pub previous: bool,
    /// What was kept of it.
    pub kept: Kept,
    /// Why (a part of) it could not be had.
    pub lost: Option<String>,
}

/// Reads pods and logs; clones share their bounds.
#[derive(Clone)]
pub struct Capturer {
    client: Client,
    all: Arc<Semaphore>,
    turns: Turns,
}

impl Capturer {
    /// One per process.
    pub fn new(client: Client) -> Self {
        Self { client, all: Arc::new(Semaphore::new(STREAMS)), turns: Turns::default() }
    }

    /// The pods of a Job, those that explain most first.
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
        pods.sort_by(facts::by_weight);
        Ok(pods)
    }

    /// Reads the pods' logs within the Job's budget, which is spent in the order given, once it is this Job's turn. The
    /// memory is to be held as long as the logs are.
    pub async fn pods(&self, pods: Vec<Pod>, budget: &Logs) -> (Vec<CapturedPod>, Memory) {
        let logs = match budget.mode {
            LogsMode::HeadAndTail => pods.iter().map(logs_of).sum(),
            LogsMode::None => 0,
        };
        let namespace = pods.first().and_then(ResourceExt::namespace).unwrap_or_default();
        // Most Jobs have one pod. Where there are more, the node of the first stands in for the others: their streams are
        // bounded per node all the same.
        let node = pods.iter().find_map(|pod| pod.spec.as_ref()?.node_name.as_deref());
        let most = budget.per_job().min(budget.per_container().saturating_mul(logs));
        let turn = self.turns.wait(&namespace, node.filter(|_| logs > 0), most).await;
        let deadline = Instant::now() + DEADLINE;
        let left = Arc::new(Mutex::new(most));
        let captured = futures::stream::iter(pods).map(|pod| {
            let left = left.clone();
            async move { self.pod(&pod, budget, &left, deadline).await }
        });
        let captured: Vec<_> = captured.buffered(PODS_AT_A_TIME).collect().await;
        let kept = captured.iter().flat_map(|pod| &pod.logs).map(|log| log.kept.bytes()).sum();
        (captured, turn.end(kept))
    }

    /// Reads one pod's logs.
    pub async fn pod(&self, pod: &Pod, budget: &Logs, left: &Mutex<usize>, deadline: Instant) -> CapturedPod {
        let mut facts = facts::of_pod(pod);
        let mut contents = Vec::new();
        if budget.mode == LogsMode::HeadAndTail {
            let node = facts.node.clone().unwrap_or_default();
            for container in &mut facts.containers {
                for previous in runs(container) {
                    // Reserved whole and given back in part: what is read at the same time never exceeds the Job's budget.
                    let granted = take(left, budget.per_container());
                    let (name, uid) = ((pod.name_any(), pod.namespace().unwrap_or_default()), &facts.uid);
                    let run =
                        Run { pod: &name.0, namespace: &name.1, uid, container: &container.name, previous };
                    let log = self.log(run, &node, granted, deadline).await;
                    give(left, granted.saturating_sub(log.kept.bytes()));
                    container.logs.push(LogFacts {
                        previous,
                        length: log.kept.length,
                        left_out: log.kept.left_out(),
                        sha256: log.kept.sha256.clone(),
                        lost: log.lost.clone(),
                        section: None,
                    });
                    contents.push(log);
                }
            }
        }
        CapturedPod { facts, created: pod.creation_timestamp().map(|t| t.0), logs: contents }
    }

    async fn log(&self, run: Run<'_>, node: &str, max: usize, deadline: Instant) -> CapturedLog {
        let mut log = CapturedLog {
            container: run.container.to_owned(),
            previous: run.previous,
            ..CapturedLog::default()
        };
        if max == 0 {
            log.lost = Some("the log budget of the policies for one Job was used up before".to_owned());
            return log;
        }
        let of_node = self.turns.node(node);
        for attempt in 1..=TRIES {
            if let Some(others) = of_node.hopeless() {
                let why = "does not answer calls for logs, and other Jobs wait for it";
                log.lost = Some(format!("node {node} {why} ({others} now)"));
                return log;
            }
            match tokio::time::timeout_at(deadline, self.try_log(&run, &of_node, max, deadline)).await {
                Ok(Ok((kept, early))) => {
                    (log.kept, log.lost) = (kept, early);
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
        deadline: Instant,
    ) -> Result<(Kept, Option<String>), Fault> {
        // Closed only at the end of the process.
        let closed = |_| Fault { why: "the sink is stopping".into(), again: false };
        let _node = node.streams.acquire().await.map_err(closed)?;
        let _all = self.all.acquire().await.map_err(closed)?;
        let api = Api::<Pod>::namespaced(self.client.clone(), run.namespace);
        let params = LogParams {
            container: Some(run.container.to_owned()),
            previous: run.previous,
            follow: false,
            ..LogParams::default()
        };
        let (patience, answer_within) =
            if node.is_mute() { (PATIENCE_WITH_MUTE, PATIENCE_WITH_MUTE) } else { (PATIENCE, CALL_TIMEOUT) };
        let stream = match tokio::time::timeout(answer_within, api.log_stream(run.pod, &params)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Fault::of(ApiError::new("read the log", error))),
            Err(_) => {
                node.said_nothing();
                return Err(Fault { why: "the node gave no answer in time".into(), again: true });
            }
        };
        let (mut kept, early) = logs::read(stream, max, patience, deadline).await;
        if early.is_some() && kept.length == 0 {
            node.said_nothing();
        } else {
            node.answered();
        }
        kept.cut_at_characters();
        if kept.length < 512 && logs::is_excuse(&kept.head) {
            return Err(Fault {
                why: String::from_utf8_lossy(&kept.head).trim_end().to_owned(),
                again: false,
            });
        }
        tracing::trace!(pod = run.uid, container = run.container, bytes = kept.length, "read a log");
        Ok((kept, early))
    }
}

/// One run of one container.
struct Run<'a> {
    namespace: &'a str,
    pod: &'a str,
    uid: &'a str,
    container: &'a str,
    previous: bool,
}

struct Fault {
    why: String,
    again: bool,
}

impl Fault {
    fn of(error: ApiError) -> Self {
        let (why, again) = match &error {
            ApiError::Refused { code, message, .. } => {
                (message.clone(), *code == 429 || *code >= 500 || *code == 408)
            }
            ApiError::Rights { .. } => (error.to_string(), false),
            _ => (error.to_string(), true),
        };
        Self { why, again }
    }
}

/// The runs of a container that have a log, as «was it the one before».
fn runs(container: &ContainerFacts) -> Vec<bool> {
    let ran = matches!(container.state.phase.as_str(), "terminated" | "running");
    container.last_state.is_some().then_some(true).into_iter().chain(ran.then_some(false)).collect()
}

/// How many logs a pod has.
fn logs_of(pod: &Pod) -> usize {
    facts::of_pod(pod).containers.iter().map(|container| runs(container).len()).sum()
}

fn take(left: &Mutex<usize>, wish: usize) -> usize {
    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
    let granted = wish.min(*left);
    *left -= granted;
    granted
}

fn give(left: &Mutex<usize>, back: usize) {
    *left.lock().unwrap_or_else(PoisonError::into_inner) += back;
}

/// Drops what is not needed of a pod, at once: a Job can have a thousand of them.
fn trim(mut pod: Pod) -> Pod {
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
