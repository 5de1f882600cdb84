//! Types shared by all rooms.
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
