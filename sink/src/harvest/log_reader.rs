//! Reads one log: with limits, timeouts and retries.
//!
//! A read starts in the regular lane, where the node must answer at once. If it does not, the log is read again in the slow
//! lane, where it has more time and blocks only other slow reads. [`crate::harvest::tuning`] has all limits and timeouts.

use std::{sync::Arc, time::Duration};

use job_handler_shared::kube::error::{ApiError, CALL_TIMEOUT};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::LogParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{
        at_risk::CaptureMode,
        captured::{CapturedLog, LogLoss},
        full_logs,
        job_pods::LogRun,
        log_buffer::LogExcerpt,
        log_stream::{self, StreamEnd, StreamTimeouts},
        node_limits::{NodeLimit, NodeLimits},
        read_failure::ReadFailure,
        tracked_pod::EarlyLog,
        tuning::{
            ATTEMPTS, FIRST_ANSWER, FOLLOWS_OF_PODS_AT_RISK, FOLLOWS_OF_RESTARTED, FULL_READ, JOB_TIMEOUT,
            PLACEHOLDER_PROBE, READS, RETRY_PAUSE, SLOW_IDLE, SLOW_READS, UNRESPONSIVE_ANSWER,
        },
    },
    object_store::{FullLogStore, Overflow},
    runtime::lanes::{LanePermit, Lanes, Pace},
};

/// Reads logs; clones share its limits.
#[derive(Clone)]
pub(crate) struct LogReader {
    client: Client,
    reads: Lanes,
    follows_of_pods_at_risk: Arc<Semaphore>,
    follows_of_restarted: Arc<Semaphore>,
    nodes: NodeLimits,
    store: Option<FullLogStore>,
}

/// How one attempt reads a log.
struct ReadAttempt<'a, R> {
    mode: CaptureMode,
    pace: Pace,
    /// Most bytes to keep.
    max: usize,
    deadline: Option<Instant>,
    /// Whether there is memory for this number of further bytes.
    room: R,
    stop: &'a CancellationToken,
}

impl LogReader {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            reads: Lanes::new(READS, SLOW_READS),
            follows_of_pods_at_risk: Arc::new(Semaphore::new(FOLLOWS_OF_PODS_AT_RISK)),
            follows_of_restarted: Arc::new(Semaphore::new(FOLLOWS_OF_RESTARTED)),
            nodes: NodeLimits::default(),
            store: None,
        }
    }

    pub(crate) fn with_store(self, store: Option<FullLogStore>) -> Self {
        Self { store, ..self }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn nodes(&self) -> &NodeLimits {
        &self.nodes
    }

    /// Where logs over their budget are stored in full.
    pub(crate) fn store(&self) -> Option<&FullLogStore> {
        self.store.as_ref()
    }

    /// Reads a log of a finished Job. In the regular lane, it defers a log that the node does not deliver at once.
    pub(crate) async fn read(
        &self,
        run: LogRun<'_>,
        node: &str,
        max: usize,
        pace: Pace,
        deadline: Instant,
    ) -> CapturedLog {
        let mut log = CapturedLog::new(run);
        if max == 0 && self.store.is_none() {
            log.lost = Some(LogLoss::OverBudget);
            return log;
        }
        let of_node = self.nodes.node(node);
        if pace == Pace::Regular && of_node.health.is_slow(run.namespace) {
            log.deferred = true;
            return log;
        }
        let never = CancellationToken::new();
        // The kubelet's placeholder is to be recognised even if nothing of the log is kept.
        let probe = if self.store.is_some() { max.max(PLACEHOLDER_PROBE) } else { max };
        for attempt in 1..=ATTEMPTS {
            if let Some(others) = of_node.given_up() {
                let reason = "does not answer calls for logs, and other Jobs wait for it";
                log.lost = Some(LogLoss::Passing(format!("node {node} {reason} ({others} now)")));
                return log;
            }
            let one = ReadAttempt {
                mode: CaptureMode::Read,
                pace,
                max: probe,
                deadline: Some(deadline),
                room: |_| true,
                stop: &never,
            };
            match timeout_at(deadline, self.try_read(&run, &of_node, one)).await {
                Ok(Ok((excerpt, end))) if pace == Pace::Slow || end == StreamEnd::Complete => {
                    (log.excerpt, log.lost) = (excerpt, end.lost());
                    full_logs::shorten(&mut log.excerpt, max, self.store()).await;
                    return log;
                }
                Ok(Err(failure)) if pace == Pace::Slow || !failure.no_answer => {
                    let retry = failure.loss.is_passing() && attempt < ATTEMPTS;
                    if !retry || of_node.health.is_unresponsive() {
                        log.lost = Some(failure.loss);
                        return log;
                    }
                    sleep(RETRY_PAUSE * attempt).await;
                }
                Err(_) if pace == Pace::Slow => {
                    let reason = format!("timed out after {} s", JOB_TIMEOUT.as_secs());
                    log.lost = Some(LogLoss::Passing(reason));
                    return log;
                }
                _ => {
                    log.deferred = true;
                    return log;
                }
            }
        }
        log
    }

    /// Reads a log before its Job has finished, until `stop`; asks `room` before it keeps more bytes.
    ///
    /// # Errors
    /// The reason if nothing of it could be read.
    pub(crate) async fn read_early(
        &self,
        run: LogRun<'_>,
        node: &str,
        mode: CaptureMode,
        max: usize,
        mut room: impl FnMut(usize) -> bool,
        stop: CancellationToken,
    ) -> Result<EarlyLog, String> {
        let of_node = self.nodes.node(node);
        let mut part: Option<EarlyLog> = None;
        let mut reason = String::new();
        for attempt in 1..=ATTEMPTS {
            let regular = attempt == 1 && !of_node.health.is_slow(run.namespace);
            let pace = if regular { Pace::Regular } else { Pace::Slow };
            let one = ReadAttempt { mode, pace, max, deadline: None, room: &mut room, stop: &stop };
            match self.try_read(&run, &of_node, one).await {
                Ok((excerpt, end)) => {
                    let lost = end.lost().map(|lost| lost.to_string());
                    let log = EarlyLog { excerpt, lost, truncated: false };
                    if log.lost.is_none() {
                        return Ok(log);
                    }
                    if part.as_ref().is_none_or(|known| known.excerpt.length <= log.excerpt.length) {
                        part = Some(log);
                    }
                }
                Err(failure) => {
                    reason = failure.loss.to_string();
                    if !failure.loss.is_passing() {
                        break;
                    }
                }
            }
            let given_up = mode == CaptureMode::Read && of_node.health.is_unresponsive();
            if attempt == ATTEMPTS || stop.is_cancelled() || given_up {
                break;
            }
            tokio::select! {
                () = sleep(RETRY_PAUSE * attempt) => {}
                () = stop.cancelled() => break,
            }
        }
        part.ok_or(reason)
    }

    async fn try_read<R: FnMut(usize) -> bool>(
        &self,
        run: &LogRun<'_>,
        node: &NodeLimit,
        attempt: ReadAttempt<'_, R>,
    ) -> Result<(LogExcerpt, StreamEnd), ReadFailure> {
        let ReadAttempt { mode, pace, max, deadline, room, stop } = attempt;
        let follow = mode != CaptureMode::Read;
        let _permits = tokio::select! {
            permits = self.permits(mode, pace, node) => permits,
            () = stop.cancelled() => {
                return Err(ReadFailure::last("it was deleted while it waited for other logs to be read"));
            }
        };
        let (first_answer, timeouts) = match (follow, pace) {
            // A container that runs may write its first byte much later, and the kubelet answers only then.
            (true, _) => (None, StreamTimeouts::default()),
            (false, pace) => {
                let (answer, timeouts) = read_timeouts(pace, node.health.is_unresponsive(), deadline);
                (Some(answer), timeouts)
            }
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), run.namespace);
        let params = LogParams {
            container: Some(run.container.to_owned()),
            previous: run.previous,
            follow,
            ..LogParams::default()
        };
        let open = async {
            match first_answer {
                Some(limit) => timeout(limit, api.log_stream(run.pod, &params)).await.ok(),
                None => Some(api.log_stream(run.pod, &params).await),
            }
        };
        let opened = tokio::select! {
            opened = open => opened,
            () = stop.cancelled() => {
                let reason = "the node had not answered when the pod was deleted or its Job finished";
                return Err(ReadFailure::last(reason));
            }
        };
        let stream = match opened {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return Err(ReadFailure::from(ApiError::new("read the log", error))),
            None => {
                record_no_answer(node, run.namespace, pace);
                return Err(ReadFailure::no_answer());
            }
        };
        let overflow = Overflow::new(self.store().map(FullLogStore::spool));
        let (excerpt, end) = log_stream::read(stream, max, overflow, timeouts, room, stop.cancelled()).await;
        let silent = matches!(end, StreamEnd::TimedOut | StreamEnd::Broken(_)) && excerpt.length == 0;
        if silent && !follow {
            record_no_answer(node, run.namespace, pace);
        } else {
            node.health.record_answer(run.namespace);
        }
        if log_stream::is_placeholder(&excerpt) {
            return Err(ReadFailure::removed(String::from_utf8_lossy(&excerpt.head).trim_end()));
        }
        tracing::trace!(
            pod = run.pod,
            container = run.container,
            bytes = excerpt.length,
            ?mode,
            "read a log"
        );
        Ok((excerpt, end))
    }

    async fn permits(&self, mode: CaptureMode, pace: Pace, node: &NodeLimit) -> [LanePermit; 2] {
        // While it waits for other nodes, a read must not keep their permits, and a follow must not keep this node's.
        let of_all = match mode {
            CaptureMode::Read => {
                let of_node = node.reads.acquire(pace).await;
                return [of_node, self.reads.acquire(pace).await];
            }
            CaptureMode::FollowNow => &self.follows_of_pods_at_risk,
            CaptureMode::FollowLong => &self.follows_of_restarted,
        };
        let of_all = of_all.clone().acquire_owned().await.ok();
        [of_all, node.follows.clone().acquire_owned().await.ok()]
    }
}

/// The time until the first answer, and the timeouts of the stream.
fn read_timeouts(pace: Pace, unresponsive: bool, deadline: Option<Instant>) -> (Duration, StreamTimeouts) {
    let full_read = Instant::now() + FULL_READ;
    let (answer, idle, deadline) = match pace {
        Pace::Regular => (FIRST_ANSWER, FIRST_ANSWER, deadline.map_or(full_read, |d| d.min(full_read))),
        Pace::Slow if unresponsive => {
            (UNRESPONSIVE_ANSWER, UNRESPONSIVE_ANSWER, deadline.unwrap_or(full_read))
        }
        Pace::Slow => (CALL_TIMEOUT, SLOW_IDLE, deadline.unwrap_or(full_read)),
    };
    (answer, StreamTimeouts { idle: Some(idle), deadline: Some(deadline) })
}

fn record_no_answer(node: &NodeLimit, namespace: &str, pace: Pace) {
    node.health.record_slow(namespace);
    // The regular lane waits only a moment, which says nothing about the node.
    if pace == Pace::Slow {
        node.health.record_timeout();
    }
}

#[cfg(test)]
mod tests;
