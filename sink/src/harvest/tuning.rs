//! Every constant that tunes the reading of logs, each with the wait or the amount that it bounds and its reason.

use std::time::Duration;

// How many logs are read at the same time.

/// Log reads at a time, all nodes together: those of 32 nodes. The apiserver's priority and fairness does not limit them.
pub(crate) const READS: usize = 128;
/// The same for logs whose node was slow to answer: half, since these can last up to [`JOB_TIMEOUT`].
pub(crate) const SLOW_READS: usize = 64;
/// Logs followed at a time that end soon, because their pods are being deleted.
pub(crate) const FOLLOWS_OF_PODS_AT_RISK: usize = 256;
/// Logs followed at a time that can last long, because their containers were restarted and run again.
pub(crate) const FOLLOWS_OF_RESTARTED: usize = 128;
/// Logs followed at a time per node: half the pods that a node runs by default (110).
pub(crate) const FOLLOWS_PER_NODE: usize = 64;
/// Log reads at a time per node: one read that hangs must not block the others.
pub(crate) const READS_PER_NODE: usize = 4;
/// The same for logs of a Job that the node was slow to answer, and the number of such Jobs.
pub(crate) const SLOW_PER_NODE: usize = 4;
/// Jobs collected at a time per node.
pub(crate) const JOBS_PER_NODE: usize = 8;
/// Pods of one Job read at a time, and its uploads: a Job of a thousand pods must not use up [`READS`].
pub(crate) const PODS_AT_A_TIME: usize = 4;

// How much memory logs may use.

/// Logs between being read and being stored, KiB. Packing needs up to three times as much again.
pub(crate) const MEMORY_KIB: u32 = 96 << 10;
/// One namespace's part of it, KiB: enough for the largest Job that a policy can allow, and less than all.
pub(crate) const NAMESPACE_MEMORY_KIB: u32 = 64 << 10;
/// The same for slow logs, KiB; of one Job, no more than this is read in the slow lane.
pub(crate) const SLOW_MEMORY_KIB: u32 = 16 << 10;
/// Logs captured before their Job finished, bytes.
pub(crate) const EARLY_MEMORY: usize = 48 << 20;
/// The end of an early log that is kept when that memory is used up, bytes. It comes on top of that memory, once per log.
pub(crate) const EARLY_TAIL: usize = 4 << 10;
/// The part of a log that is read even without budget, bytes: enough to recognise the kubelet's placeholder.
pub(crate) const PLACEHOLDER_PROBE: usize = 1 << 10;
/// The kubelet's placeholder is shorter than this, bytes: a sentence and the ID of a container.
pub(crate) const PLACEHOLDER_MAX: u64 = 512;
/// The buffer of one stream, bytes: a usual piece of a log, small enough for all [`READS`] and followed logs together.
pub(crate) const STREAM_BUFFER: usize = 16 << 10;
/// Deleted pods remembered per Job; its result lists fewer.
pub(crate) const DELETED_PODS_PER_JOB: usize = 1_024;
/// Nodes and namespaces whose limits are remembered while nothing uses them.
pub(crate) const IDLE_LIMITS: usize = 1_000;

// How long a read may wait.

/// From the request to the first byte in the regular lane. A healthy kubelet answers within milliseconds; whatever takes
/// longer is read again in the slow lane.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// All of one log in the regular lane, and all of one early log.
pub(crate) const FULL_READ: Duration = Duration::from_secs(10);
/// Between two pieces of a log in the slow lane.
pub(crate) const SLOW_IDLE: Duration = Duration::from_secs(10);
/// For anything from a node that has not answered for [`UNRESPONSIVE_AFTER`]: one short call per Job, so that its queue
/// gets shorter.
pub(crate) const UNRESPONSIVE_ANSWER: Duration = Duration::from_secs(2);
/// All logs of a Job, from the moment it has its permit; the slow lane has the same time again. What is missing then is
/// read in a later harvest.
pub(crate) const JOB_TIMEOUT: Duration = Duration::from_secs(60);
/// For early captures to end after their Job has finished; starts again with each that ends.
pub(crate) const CAPTURES_END: Duration = Duration::from_secs(3);
/// For the stream of a deleted pod to end by itself; it does not if the node is gone, too.
pub(crate) const DELETED_POD_STREAM: Duration = Duration::from_secs(15);
/// For the watch of Jobs to show the Job of a pod that the watch of pods has shown.
pub(crate) const JOB_OF_POD: Duration = Duration::from_millis(200);
/// A tracked pod whose Job never shows up is dropped after this.
pub(crate) const UNKNOWN_JOB: Duration = Duration::from_secs(60);
/// A log that still arrives after this time, when its time is over, is too long: half of [`JOB_TIMEOUT`], so that a log that
/// had to wait for others of its Job is read again.
pub(crate) const LONG_READ: Duration = Duration::from_secs(30);

// When a log is followed.

/// Logs are followed from this long before their Job's deadline: the clocks of nodes and controllers differ, and
/// `startTime` is in whole seconds.
pub(crate) const DEADLINE_LEAD: Duration = Duration::from_secs(10);

// When a read is repeated.

/// Attempts per log in one harvest, for answers that may be better the next time.
pub(crate) const ATTEMPTS: u32 = 3;
/// Pause before the second attempt; before the third, twice as long.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Pause after the first harvest of a Job with a log that could not be read for now; it doubles with each further one …
pub(crate) const FIRST_HARVEST_PAUSE: Duration = Duration::from_secs(5);
/// … up to this: it bounds how late a log is read once its node answers again, and what a Job costs until then.
pub(crate) const LONGEST_HARVEST_PAUSE: Duration = Duration::from_secs(300);
/// Harvests of a Job before a log counts as lost, even if the kubelet says that its container was removed (it says so while
/// its container runtime restarts, too), or the harvest deadline is over (a policy may ask for the result long after the end).
pub(crate) const MIN_HARVESTS: u32 = 3;
/// A log counts as lost so long before the harvest deadline, at which the Job's TTL may delete its pods; a tenth of the
/// deadline if that is shorter.
pub(crate) const BEFORE_DEADLINE: Duration = Duration::from_secs(600);

// When a node counts as slow or unresponsive.

/// Logs of a namespace in a row that the node did not answer at once, after which the next ones start in the slow lane …
pub(crate) const SLOW_CALLS: u32 = 2;
/// … for this long after the last one.
pub(crate) const SLOW_FOR: Duration = Duration::from_secs(30);
/// Calls in a row without an answer, after which a node may count as unresponsive …
pub(crate) const UNRESPONSIVE_CALLS: u32 = 3;
/// … if they spread over this time …
pub(crate) const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(30);
/// … and the last one is no older than this.
pub(crate) const UNRESPONSIVE_FOR: Duration = Duration::from_secs(60);
/// Jobs waiting for an unresponsive node, above which it is not called at all.
pub(crate) const GIVE_UP_QUEUE: usize = 16;
