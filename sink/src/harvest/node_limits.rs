//! Limits how many Jobs are collected at a time per node, and how much memory their logs use per namespace and in all.
//!
//! Jobs queue per node, and the time limit of a collection starts when the Job has its permit: a burst of Jobs on a busy
//! node loses no logs by waiting. Logs that the node does not answer at once are deferred to the slow lane
//! ([`NodeLimits::acquire_slow`]), so that they block no other log of the same node. A node that has not answered for a
//! while gets one short call per Job, and none while many Jobs wait for it, so that its queue gets shorter.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    harvest::{
        node_health::NodeHealth,
        tuning::{
            FOLLOWS_PER_NODE, GIVE_UP_QUEUE, IDLE_LIMITS, JOBS_PER_NODE, MEMORY_KIB, NAMESPACE_MEMORY_KIB,
            READS_PER_NODE, SLOW_MEMORY_KIB, SLOW_PER_NODE,
        },
    },
    runtime::lanes::{LanePermit, Lanes, Pace},
};

/// The limits; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct NodeLimits(Arc<AllLimits>);

#[derive(Debug)]
struct AllLimits {
    memory: Lanes,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
    nodes: Mutex<HashMap<String, Arc<NodeLimit>>>,
}

/// One node's limits and health.
#[derive(Debug)]
pub(crate) struct NodeLimit {
    jobs: Lanes,
    pub(crate) reads: Lanes,
    /// For logs that are followed until their containers end.
    pub(crate) follows: Arc<Semaphore>,
    pub(crate) health: NodeHealth,
    /// Jobs that wait for the slow lane.
    waiting: AtomicUsize,
}

/// The right to read a Job's logs from its node, and the memory for them.
#[derive(Debug)]
pub(crate) struct CollectPermit {
    node: LanePermit,
    memory: MemoryPermit,
}

/// Memory for logs, released when dropped.
#[derive(Debug, Default)]
pub(crate) struct MemoryPermit(Vec<OwnedSemaphorePermit>);

impl Default for NodeLimits {
    fn default() -> Self {
        Self(Arc::new(AllLimits {
            memory: Lanes::new(MEMORY_KIB as usize, SLOW_MEMORY_KIB as usize),
            namespaces: Mutex::default(),
            nodes: Mutex::default(),
        }))
    }
}

impl NodeLimits {
    /// Waits until a Job of this namespace may read up to `bytes` from this node.
    ///
    /// The order keeps Jobs of different namespaces and nodes apart: while it waits for its namespace's memory, a Job holds
    /// nothing; while it waits for its node, only that memory; and memory in all is released by collections that wait for
    /// nothing.
    pub(crate) async fn acquire(&self, namespace: &str, node: Option<&str>, bytes: usize) -> CollectPermit {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(NAMESPACE_MEMORY_KIB);
        let of_namespace = get_or_insert(&self.0.namespaces, namespace, || {
            Arc::new(Semaphore::new(NAMESPACE_MEMORY_KIB as usize))
        });
        let mut memory = Vec::from_iter(of_namespace.acquire_many_owned(kib).await);
        let node = match node {
            Some(name) => self.node(name).jobs.acquire(Pace::Regular).await,
            None => None,
        };
        memory.extend(self.0.memory.acquire_many(Pace::Regular, kib).await);
        CollectPermit { node, memory: MemoryPermit(memory) }
    }

    /// Waits until a Job may read up to `bytes` from this node in the slow lane; returns how many it may read.
    ///
    /// A Job that waits here may hold memory for logs it has read already; Jobs with a permit of this lane wait for nothing.
    pub(crate) async fn acquire_slow(&self, node: &str, bytes: usize) -> (CollectPermit, usize) {
        let bytes = bytes.min((SLOW_MEMORY_KIB as usize) << 10);
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(SLOW_MEMORY_KIB);
        let of_node = self.node(node);
        let permit = {
            let _waiting = Waiting::new(&of_node.waiting);
            of_node.jobs.acquire(Pace::Slow).await
        };
        let memory = self.0.memory.acquire_many(Pace::Slow, kib).await;
        (CollectPermit { node: permit, memory: MemoryPermit(Vec::from_iter(memory)) }, bytes)
    }

    pub(crate) fn node(&self, name: &str) -> Arc<NodeLimit> {
        get_or_insert(&self.0.nodes, name, || Arc::new(NodeLimit::default()))
    }
}

impl Default for NodeLimit {
    fn default() -> Self {
        Self {
            jobs: Lanes::new(JOBS_PER_NODE, SLOW_PER_NODE),
            reads: Lanes::new(READS_PER_NODE, SLOW_PER_NODE),
            follows: Arc::new(Semaphore::new(FOLLOWS_PER_NODE)),
            health: NodeHealth::default(),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl NodeLimit {
    /// The number of Jobs that wait for this node, if it is unresponsive and they are too many to be tried one by one.
    pub(crate) fn given_up(&self) -> Option<usize> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        Some(waiting).filter(|waiting| *waiting >= GIVE_UP_QUEUE && self.health.is_unresponsive())
    }
}

impl MemoryPermit {
    /// Combines both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl CollectPermit {
    /// Releases the node, and the memory beyond `bytes`.
    pub(crate) fn release_node(self, bytes: usize) -> MemoryPermit {
        drop(self.node);
        let mut memory = self.memory;
        for permit in &mut memory.0 {
            let spare = permit.num_permits().saturating_sub(bytes.div_ceil(1024));
            drop(permit.split(spare));
        }
        memory
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn get_or_insert<T>(
    all: &Mutex<HashMap<String, Arc<T>>>,
    name: &str,
    new: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    let mut all = all.lock();
    if all.len() > IDLE_LIMITS {
        // Permits and readers hold a reference: these are in use.
        all.retain(|_, one| Arc::strong_count(one) > 1);
    }
    all.entry(name.to_owned()).or_insert_with(new).clone()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::harvest::tuning::UNRESPONSIVE_AFTER;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn one_namespace_cannot_use_all_memory_nor_a_policy_more_than_there_is() {
        let limits = NodeLimits::default();
        let huge = limits.acquire("greedy", None, usize::MAX).await;
        assert!(limits.acquire("greedy", None, MIB).now_or_never().is_none(), "its part is used up");
        let other =
            limits.acquire("modest", None, 32 * MIB).now_or_never().expect("there is room for others");
        assert!(limits.acquire("third", None, MIB).now_or_never().is_none(), "the sum is limited, too");
        // Memory that was not needed is free at once, the rest once the result is stored.
        let stored = other.release_node(MIB);
        assert!(limits.acquire("third", None, 31 * MIB).now_or_never().is_some());
        assert!(limits.acquire("third", None, 32 * MIB).now_or_never().is_none());
        drop((stored, huge));
        assert!(limits.acquire("third", None, 64 * MIB).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_queue_at_one_node_does_not_block_another() {
        let limits = NodeLimits::default();
        let mut there = Vec::new();
        for _ in 0..JOBS_PER_NODE {
            there.push(limits.acquire("a", Some("mute"), 1).await);
        }
        assert!(limits.acquire("a", Some("mute"), 1).now_or_never().is_none());
        assert!(limits.acquire("a", Some("well"), 1).now_or_never().is_some());
        there.pop();
        assert!(limits.acquire("b", Some("mute"), 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn slow_logs_do_not_block_regular_ones() {
        let limits = NodeLimits::default();
        let mut slow = Vec::new();
        for _ in 0..SLOW_PER_NODE {
            slow.push(limits.acquire_slow("n", MIB).await.0);
        }
        assert!(limits.acquire_slow("n", MIB).now_or_never().is_none());
        assert!(limits.acquire("a", Some("n"), MIB).now_or_never().is_some(), "the regular lane is free");
        let (_permit, most) = limits.acquire_slow("m", usize::MAX).now_or_never().unwrap_or_else(|| {
            slow.clear();
            limits.acquire_slow("m", usize::MAX).now_or_never().unwrap()
        });
        assert_eq!(most, 16 * MIB, "a Job of any size fits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_given_up_while_it_is_unresponsive_and_many_jobs_wait() {
        let node = NodeLimit::default();
        for _ in 0..3 {
            node.health.record_timeout();
        }
        tokio::time::advance(UNRESPONSIVE_AFTER).await;
        node.health.record_timeout();
        assert!(node.health.is_unresponsive() && node.given_up().is_none());
        node.waiting.store(GIVE_UP_QUEUE, Ordering::Relaxed);
        assert_eq!(node.given_up(), Some(GIVE_UP_QUEUE));
        node.health.record_answer("a");
        assert!(node.given_up().is_none());
    }
}
