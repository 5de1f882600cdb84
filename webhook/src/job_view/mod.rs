//! The parts of a Job that decisions need, read from JSON in one pass.
//!
//! In: the Job of a review, or one of a list or watch. Out: a [`JobView`], or only the Job's snapshot with the labels that
//! policies name. Start with `view.rs`; `raw.rs` reads the JSON, `containers.rs` the requests and limits of the pod
//! template, `first_of.rs` bounds lists.

mod containers;
mod first_of;
mod raw;
mod view;

pub(crate) use containers::ContainerView;
pub(crate) use raw::read_trimmed;
pub use view::JobView;
pub(crate) use view::{TemplateView, changes_scope, leaves_orphans, newly_active};
