//! The watches and the in-memory store that they fill.
//!
//! In: watch events. Out: the [`store::Store`] that every other room reads, and keys in the work queue. Start with
//! [`reflectors`] (one function per watched kind) and [`job_watch`], then [`store`].
//!
//! | file | holds |
//! | --- | --- |
//! | [`job_watch`], [`reflectors`], [`secret_watch`] | the watches |
//! | [`store`], `store_policies`, `store_results`, `job_index` | what they know: the API and its parts, Jobs by uid and group |
//! | `changes` | wakes subscribers of the store |
//! | [`tombstones`] | Jobs that were deleted before their result was stored |
//! | [`result_inventory`], [`ledger_index`], [`secret_access`] | results for retention, JobLedgers, the right to Secrets |
//! | [`context`], [`key`] | what a watch needs; the key of a reconcile |

pub(crate) mod changes;
pub mod context;
mod job_index;
pub(crate) mod job_watch;
pub mod key;
pub(crate) mod ledger_index;
pub(crate) mod reflectors;
pub(crate) mod result_inventory;
pub(crate) mod secret_access;
pub(crate) mod secret_watch;
pub mod store;
mod store_policies;
mod store_results;
pub(crate) mod tombstones;
