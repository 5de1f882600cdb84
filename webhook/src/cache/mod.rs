//! What the webhook keeps in memory: policies, namespaces and Jobs as they were watched.
//!
//! In: watch events and lists of the apiserver. Out: snapshots that decisions read without a call. Read `jobs` and
//! `policies` first.
//!
//! | module | holds |
//! | --- | --- |
//! | `policies`, `reflector` | policies and namespaces, and the watch handler that fills them |
//! | `jobs`, `job_watch`, `tombstones` | Jobs, their watch, and the Jobs that were deleted a moment ago |
//! | `consistent_list` | reads of Jobs that show every earlier write |
//! | `ttl_map` | a map whose entries expire |

pub mod consistent_list;
pub(crate) mod job_watch;
pub mod jobs;
pub mod policies;
pub mod reflector;
pub(crate) mod tombstones;
pub(crate) mod ttl_map;
