//! An apiserver in memory: objects of any resource with resourceVersions, preconditions, patches, paged lists and
//! watches as the real one has them, and faults that tests inject.
//!
//! Read `server` first; `request` parses calls, `storage` answers them, `faults` are injected before.

mod faults;
mod request;
mod server;
mod storage;

pub use faults::{Fault, LostWrite};
pub use server::Apiserver;
