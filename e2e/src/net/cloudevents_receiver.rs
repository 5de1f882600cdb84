//! The receiver of CloudEvents (`e2e/cloudevents`, on the official Go SDK): how it is started, and where it writes.

use std::path::{Path, PathBuf};

use crate::build;
use crate::harness::error::Result;
use crate::harness::process::Program;

/// A receiver on this port of loopback, without TLS unless `more` arguments say so; builds it where it has to.
///
/// # Errors
/// If it cannot be built.
pub fn program(folder: &Path, port: u16, more: impl IntoIterator<Item = String>) -> Result<Program> {
    let own = [format!("-listen=127.0.0.1:{port}"), format!("-out={}", taken(folder).display())];
    Ok(Program {
        name: "receiver".to_owned(),
        executable: build::event_receiver()?,
        arguments: own.into_iter().chain(more).map(Into::into).collect(),
        environment: Vec::new(),
        log: folder.join("receiver.log"),
    })
}

/// What it took: one JSON object per line.
pub fn taken(folder: &Path) -> PathBuf {
    folder.join("events.jsonl")
}
