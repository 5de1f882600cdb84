//! The parts of a Job that decisions need, read from JSON in one pass.
//!
//! In: the Job of a review, or an item of a LIST. Out: a [`JobView`]. Start with `view.rs`; `containers.rs` reads the
//! requests and limits of the pod template.

mod containers;
mod view;

pub(crate) use containers::ContainerView;
pub use view::JobView;
pub(crate) use view::newly_active;
