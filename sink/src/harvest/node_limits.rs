//! Whose turn it is to have its logs read: so many Jobs per node, so many bytes of memory per namespace and in all.
//!
//! Jobs stand in line per node, and the time that a capture may take begins with its turn: a burst of Jobs on a busy
//! node loses no logs by waiting. What is not answered at once is put off to a line of its own ([`Turns::wait_late`]),
//! so that logs which hang hold up none of those on the same node which do not. A node that has not answered for a while
//! gets one short call per Job, and none where many wait for it, so that its line comes to an end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Memory for logs between their reading and their storing, KiB. Packing takes up to three times as much again.
const MEMORY: u32 = 96 << 10;
/// What one namespace may have of it, KiB: enough for the largest Job that a policy can ask for, and less than all.
const NAMESPACE_MEMORY: u32 = 64 << 10;
/// Jobs at a time per node.
const JOBS_PER_NODE: usize = 8;
/// Log streams at a time per node: one that hangs holds up only itself.
const STREAMS_PER_NODE: usize = 4;
/// Jobs at a time per node whose logs were not had at once, and log streams of theirs.
const LATE_PER_NODE: usize = 4;
/// Memory for such logs, KiB; of a Job, no more than this is read late.
const LATE_MEMORY: u32 = 16 << 10;
/// Where so many of a namespace's logs in a row were not answered at once by a node, the next ones are late from the
/// start …
const HUNG_CALLS: u32 = 2;
/// … for so long.
const HUNG_FRESH: Duration = Duration::from_secs(30);
/// Logs that are followed at a time per node; half of what a node holds by default (110 pods).
const FOLLOWS_PER_NODE: usize = 64;
/// A node is given up for the moment where so many calls in a row were not answered …
const MUTE_CALLS: u32 = 3;
/// … over this time …
const MUTE_FOR: Duration = Duration::from_secs(30);
/// … and the last of them is no older than this.
const MUTE_FRESH: Duration = Duration::from_secs(60);
/// Jobs in the line of a node that is given up, above which it is not even called.
const LONG_LINE: usize = 16;
/// Nodes and namespaces nobody uses are forgotten beyond this many.
const REMEMBERED: usize = 1_000;

/// The lines; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Arc<Semaphore>,
    late_memory: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Arc<Semaphore>>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
}

/// A node, as far as its logs go.
#[derive(Debug)]
pub struct Node {
    /// For Jobs.
    turns: Arc<Semaphore>,
    /// For log streams.
    pub streams: Semaphore,
    late_turns: Arc<Semaphore>,
    /// For log streams that were not answered at once.
    pub late_streams: Semaphore,
    /// For logs that are followed until their containers end.
    pub follows: Semaphore,
    line: AtomicUsize,
    mute: Mutex<Mute>,
    /// By namespace: logs in a row that were not answered at once, and the last time.
    hung: Mutex<HashMap<String, (u32, Instant)>>,
}

#[derive(Debug, Default)]
struct Mute {
    calls: u32,
    span: Option<(Instant, Instant)>,
}

/// A turn: while it lasts, the node is ours in part, and so is the memory.
#[derive(Debug)]
pub struct Turn {
    node: Option<OwnedSemaphorePermit>,
    memory: Memory,
}

/// Memory for logs, until it is dropped.
#[derive(Debug, Default)]
pub struct Memory(Vec<OwnedSemaphorePermit>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Shared {
            memory: Arc::new(Semaphore::new(MEMORY as usize)),
            late_memory: Arc::new(Semaphore::new(LATE_MEMORY as usize)),
            namespaces: Mutex::default(),
            nodes: Mutex::default(),
        }))
    }
}

impl Turns {
    /// Waits until a Job of this namespace may read up to so many bytes from this node.
    ///
    /// The order keeps strangers apart: who waits for its namespace's memory holds nothing, who waits in a node's line
    /// holds only that, and who waits for the memory of all is let on by captures that never wait for another.
    pub async fn wait(&self, namespace: &str, node: Option<&str>, bytes: usize) -> Turn {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(NAMESPACE_MEMORY);
        let of_namespace =
            known(&self.0.namespaces, namespace, || Arc::new(Semaphore::new(NAMESPACE_MEMORY as usize)));
        // An error would say that a semaphore is closed; nobody closes them.
        let mut memory = Vec::from_iter(of_namespace.acquire_many_owned(kib).await);
        let node = match node {
            Some(name) => {
                let node = self.node(name);
                node.turns.clone().acquire_owned().await.ok()
            }
            None => None,
        };
        memory.extend(self.0.memory.clone().acquire_many_owned(kib).await);
        Turn { node, memory: Memory(memory) }
    }

    /// Waits until a Job may read late up to so many bytes from this node; gives how many it may.
    ///
    /// Who waits here may hold memory for logs it had at once; but those who have a turn here wait for nobody.
    pub async fn wait_late(&self, node: &str, bytes: usize) -> (Turn, usize) {
        let bytes = bytes.min((LATE_MEMORY as usize) << 10);
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(LATE_MEMORY);
        let of_node = self.node(node);
        let turn = {
            let _line = InLine::new(&of_node.line);
            of_node.late_turns.clone().acquire_owned().await.ok()
        };
        let memory = self.0.late_memory.clone().acquire_many_owned(kib).await;
        (Turn { node: turn, memory: Memory(Vec::from_iter(memory)) }, bytes)
    }

    /// What is known of a node.
    pub fn node(&self, name: &str) -> Arc<Node> {
        known(&self.0.nodes, name, || {
            Arc::new(Node {
                turns: Arc::new(Semaphore::new(JOBS_PER_NODE)),
                streams: Semaphore::new(STREAMS_PER_NODE),
                late_turns: Arc::new(Semaphore::new(LATE_PER_NODE)),
                late_streams: Semaphore::new(LATE_PER_NODE),
                follows: Semaphore::new(FOLLOWS_PER_NODE),
                line: AtomicUsize::new(0),
                mute: Mutex::default(),
                hung: Mutex::default(),
            })
        })
    }
}

impl Node {
    /// A call for a log of this namespace was not answered at once.
    pub fn hung(&self, namespace: &str) {
        let mut hung = self.hung.lock();
        hung.retain(|_, (_, last)| last.elapsed() < HUNG_FRESH);
        let known = hung.entry(namespace.to_owned()).or_insert((0, Instant::now()));
        *known = (known.0.saturating_add(1), Instant::now());
    }

    /// Whether logs of this namespace are best read late.
    pub fn is_late(&self, namespace: &str) -> bool {
        let hung = self.hung.lock();
        hung.get(namespace).is_some_and(|(calls, last)| *calls >= HUNG_CALLS && last.elapsed() < HUNG_FRESH)
    }

    /// A call for a log of this namespace was answered.
    pub fn answered(&self, namespace: &str) {
        self.hung.lock().remove(namespace);
        *self.mute.lock() = Mute::default();
    }

    /// A call was not answered in time.
    pub fn said_nothing(&self) {
        let mut mute = self.mute.lock();
        let now = Instant::now();
        // Silence of long ago says nothing about now.
        let first = mute.span.filter(|(_, last)| last.elapsed() < MUTE_FRESH).map(|(first, _)| first);
        mute.calls = if first.is_some() { mute.calls.saturating_add(1) } else { 1 };
        mute.span = Some((first.unwrap_or(now), now));
    }

    /// Whether it has not answered for a while.
    pub fn is_mute(&self) -> bool {
        let mute = self.mute.lock();
        mute.calls >= MUTE_CALLS
            && mute
                .span
                .is_some_and(|(first, last)| first.elapsed() >= MUTE_FOR && last.elapsed() < MUTE_FRESH)
    }

    /// The Jobs that wait for it, where it is mute and they are too many to be tried one by one.
    pub fn hopeless(&self) -> Option<usize> {
        Some(self.line.load(Ordering::Relaxed)).filter(|line| *line >= LONG_LINE && self.is_mute())
    }
}

impl Memory {
    /// Both together.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl Turn {
    /// Ends the turn; of the memory only so many bytes are kept.
    pub fn end(self, bytes: usize) -> Memory {
        drop(self.node);
        let mut memory = self.memory;
        for permit in &mut memory.0 {
            let spare = permit.num_permits().saturating_sub(bytes.div_ceil(1024));
            drop(permit.split(spare));
        }
        memory
    }
}

struct InLine<'a>(&'a AtomicUsize);

impl<'a> InLine<'a> {
    fn new(line: &'a AtomicUsize) -> Self {
        line.fetch_add(1, Ordering::Relaxed);
        Self(line)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn known<T>(all: &Mutex<HashMap<String, Arc<T>>>, name: &str, new: impl FnOnce() -> Arc<T>) -> Arc<T> {
    let mut all = all.lock();
    if all.len() > REMEMBERED {
        // A permit holds its semaphore, and who looks at a node holds that: these are in use.
        all.retain(|_, one| Arc::strong_count(one) > 1);
    }
    all.entry(name.to_owned()).or_insert_with(new).clone()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn one_namespace_cannot_take_all_memory_nor_a_policy_more_than_there_is() {
        let turns = Turns::default();
        let huge = turns.wait("greedy", None, usize::MAX).await;
        assert!(turns.wait("greedy", None, MIB).now_or_never().is_none(), "it has had its part");
        let other = turns.wait("modest", None, 32 * MIB).now_or_never().expect("there is room for others");
        assert!(turns.wait("third", None, MIB).now_or_never().is_none(), "in all it is bounded");
        // What was not needed is there for others at once, the rest once the result is stored.
        let stored = other.end(MIB);
        assert!(turns.wait("third", None, 31 * MIB).now_or_never().is_some());
        assert!(turns.wait("third", None, 32 * MIB).now_or_never().is_none());
        drop((stored, huge));
        assert!(turns.wait("third", None, 64 * MIB).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_line_at_one_node_is_none_at_another() {
        let turns = Turns::default();
        let mut there = Vec::new();
        for _ in 0..JOBS_PER_NODE {
            there.push(turns.wait("a", Some("mute"), 1).await);
        }
        assert!(turns.wait("a", Some("mute"), 1).now_or_never().is_none());
        assert!(turns.wait("a", Some("well"), 1).now_or_never().is_some());
        there.pop();
        assert!(turns.wait("b", Some("mute"), 1).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_waits_apart() {
        let turns = Turns::default();
        let node = turns.node("n");
        let mut late = Vec::new();
        for _ in 0..LATE_PER_NODE {
            late.push(turns.wait_late("n", MIB).await.0);
        }
        assert!(turns.wait_late("n", MIB).now_or_never().is_none());
        assert!(
            turns.wait("a", Some("n"), MIB).now_or_never().is_some(),
            "whoever does not hang is not there"
        );
        let (_turn, most) = turns.wait_late("m", usize::MAX).now_or_never().unwrap_or_else(|| {
            late.clear();
            turns.wait_late("m", usize::MAX).now_or_never().unwrap()
        });
        assert_eq!(most, 16 * MIB, "however large a Job is, it fits");
        node.hung("a");
        assert!(!node.is_late("a"), "once is nothing");
        node.hung("a");
        assert!(node.is_late("a") && !node.is_late("b"));
        tokio::time::advance(HUNG_FRESH).await;
        assert!(!node.is_late("a"), "it is tried anew now and then");
        node.hung("a");
        node.hung("a");
        node.answered("a");
        assert!(!node.is_late("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_given_up_after_long_silence_and_taken_up_at_its_first_word() {
        let turns = Turns::default();
        let node = turns.node("n");
        for _ in 0..3 {
            node.said_nothing();
        }
        assert!(!node.is_mute(), "a moment is not enough");
        tokio::time::advance(MUTE_FOR).await;
        node.said_nothing();
        assert!(node.is_mute() && node.hopeless().is_none());
        node.line.store(LONG_LINE, Ordering::Relaxed);
        assert_eq!(node.hopeless(), Some(LONG_LINE));
        node.answered("a");
        assert!(!node.is_mute() && node.hopeless().is_none());
        for _ in 0..9 {
            node.said_nothing();
        }
        tokio::time::advance(2 * MUTE_FRESH).await;
        assert!(!node.is_mute(), "that was long ago");
        node.said_nothing();
        assert!(!node.is_mute(), "and is not counted any more");
    }
}
