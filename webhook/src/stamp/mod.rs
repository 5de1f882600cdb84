//! What `/mutate` changes in a Job, and the JSON Patch that does it.
//!
//! In: a [`crate::job_view::JobView`], the policies and the time. Out: a [`decide::StampDecision`] and its JSON Patch.
//! Everything here is pure. Start with `decide.rs`.
//!
//! | file | holds |
//! | --- | --- |
//! | `select.rs` | which policies apply to a Job, and their combined settings |
//! | `decide.rs` | the decision for a create or an update |
//! | `fields.rs` | the rules of each field |
//! | `container_resources.rs` | requests and limits of containers |
//! | `patch.rs` | decision -> JSON Patch |

mod container_resources;
pub mod decide;
mod fields;
pub mod patch;
pub(crate) mod select;
