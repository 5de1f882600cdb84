//! Types that several rooms share: no I/O, no imports of other rooms. Read [`job_change`] and [`result_ref`] first.

pub(crate) mod entry_state;
pub(crate) mod job_change;
pub(crate) mod object_store_error;
pub(crate) mod pending_events;
pub mod policy_entry;
pub(crate) mod replica;
pub mod result_ref;
pub mod served_namespaces;
pub mod stored_result;
pub(crate) mod summary;
pub(crate) mod text;
