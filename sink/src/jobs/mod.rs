//! The next step for one Job, and the conditional writes that carry it out.
//!
//! In: a Job, its policies and its stored results. Out: a [`plan::Step`]. Start with [`plan`] (pure). [`marks`] reads the
//! annotations that the sink has left on a Job, [`patch`] writes them.

pub(crate) mod marks;
pub(crate) mod patch;
pub(crate) mod plan;
