//! The endpoints: review in, decision, response out.

pub(crate) mod job_estimator;
pub mod mutate;
pub mod response;
pub mod review;
pub mod server;
pub mod state;
pub mod validate;
pub mod warn;
