//! An S3-compatible server, for the tests of full logs: versitygw, a gateway that is used in production and
//! shares no code with our client. It checks signatures and checksums, and stores objects as files below a folder.

use std::path::PathBuf;

use crate::build::go::GoProgram;
use crate::build::named_by;
use crate::harness::error::Result;

/// Names a ready `versitygw` instead of building one.
pub const VERSITYGW_BIN: &str = "JOB_HANDLER_VERSITYGW_BIN";

/// Finds or builds the server (`e2e/object-store` pins its version).
///
/// # Errors
/// If it has to be built and `go` is missing or the build fails.
pub fn object_store() -> Result<PathBuf> {
    if let Some(program) = named_by(VERSITYGW_BIN)? {
        return Ok(program);
    }
    GoProgram {
        what: "the S3-compatible server versitygw",
        duration: "about 2 minutes on 2 cores",
        module: "object-store",
        package: "github.com/versity/versitygw/cmd/versitygw",
        program: "versitygw",
        ..GoProgram::default()
    }
    .find_or_build()
}
