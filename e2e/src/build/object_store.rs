//! An S3-compatible server, for the tests of whole logs: versitygw, a gateway that others run in production and that
//! shares no code with our client. It checks signatures and checksums, and keeps objects as files below a folder.

use std::path::{Path, PathBuf};

use super::{cache, go, named, watched};
use crate::harness::error::Result;

/// Names a ready `versitygw` instead of building one.
pub const VERSITYGW_BIN: &str = "JOB_HANDLER_VERSITYGW_BIN";

/// Finds or builds the server (`e2e/object-store` pins its version).
///
/// # Errors
/// If it has to be built and `go` is missing or the build fails.
pub fn object_store() -> Result<PathBuf> {
    if let Some(program) = named(VERSITYGW_BIN)? {
        return Ok(program);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("object-store");
    let key = cache::digest(&source, &[])?;
    cache::build_once(&format!("versitygw-{key}"), "versitygw", |target| {
        let mut command = go()?;
        command.current_dir(&source).env("GOWORK", "off");
        command.args(["build", "-v", "-buildvcs=false", "-ldflags", "-s -w", "-o"]);
        command.arg(target).arg("github.com/versity/versitygw/cmd/versitygw");
        watched::run(command, "the S3-compatible server versitygw", "about 2 minutes on 2 cores, once")
            .map(drop)
    })
}
