//! The receiver of CloudEvents (`e2e/cloudevents`, on the official Go SDK).

use std::path::PathBuf;

use crate::build::go::GoProgram;
use crate::harness::error::Result;

/// Finds or builds the receiver.
///
/// # Errors
/// If `go` is missing or the build fails.
pub fn event_receiver() -> Result<PathBuf> {
    GoProgram {
        what: "the receiver of CloudEvents",
        duration: "under a minute",
        module: "cloudevents",
        package: ".",
        program: "receiver",
        ..GoProgram::default()
    }
    .find_or_build()
}
