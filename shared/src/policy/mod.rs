//! Policies: their types, how several combine, and what applies to one Job.

pub mod bytes;
pub mod effective;
pub mod install_defaults;
pub mod range;
pub mod schema;
pub mod set;
pub mod spec;
pub mod status;
