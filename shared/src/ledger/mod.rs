//! The shared record of granted attempts, and what is derived from it.

pub mod crd;
pub mod failure_streak;
pub mod refusal;
