//! The HTTPS endpoints: an AdmissionReview comes in, a response goes out.
//!
//! | endpoint | steps | denies |
//! | --- | --- | --- |
//! | `/mutate` | review -> policies -> stamp decision -> JSON Patch | never |
//! | `/validate` | review -> attempt -> limiter | Jobs over a limit |
//! | `/warn` | review -> estimate of active Jobs -> warning | never |
//!
//! Start with `review.rs` (what comes in), then `mutate.rs` and `validate.rs`. `endpoint.rs` holds what the three share,
//! `server.rs` the HTTP server with its bounds (those on bodies are in `request_body.rs`), `leak_signs.rs`,
//! `known_callers.rs` and `paths.rs` what shows that somebody else sends reviews, `object_limits.rs` what no apiserver
//! sends, `state.rs` what the handlers use.

mod endpoint;
pub(crate) mod job_estimator;
mod known_callers;
pub mod leak_signs;
pub mod mutate;
mod object_limits;
mod paths;
mod request_body;
pub mod response;
mod review;
pub mod server;
pub mod state;
pub mod validate;
pub mod warn;
