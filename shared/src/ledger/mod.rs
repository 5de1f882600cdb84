//! The JobLedger, which all webhook replicas and the sink share.
//!
//! [`crd`] is its format (start reading there), [`failure_streak`] the part about failed Jobs, and [`refusal`] the record
//! of a refusal that the webhook sends to the sink.

pub mod crd;
pub mod failure_streak;
pub mod refusal;
