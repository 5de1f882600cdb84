//! The next step for one Job, and the conditional writes that carry it out.
//!
//! In: a Job, its policies and its stored results. Out: a [`plan::Step`]. Start with [`plan`] (pure).
//! [`result_annotations`] reads the annotations that the sink wrote to a Job, [`patch`] writes them.

pub(crate) mod patch;
pub(crate) mod plan;
pub(crate) mod result_annotations;
