//! Types that several rooms share: no I/O, no imports of other rooms. Read [`job_change`] and [`result_ref`] first.

pub mod entry_state;
pub mod job_change;
pub mod object_store_error;
pub mod pending_events;
pub mod policy_entry;
pub mod replica;
pub mod result_ref;
pub mod stored_result;
pub mod summary;
pub mod text;
