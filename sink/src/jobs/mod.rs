//! What to do with one Job (pure), and the patches that mark it.

pub mod marks;
pub mod patch;
pub mod plan;
