//! What the tests of the sink share.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

pub mod build;

pub use job_handler_shared::testing::apiserver::{Apiserver, Fault};
