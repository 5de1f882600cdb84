//! How the receiver of CloudEvents (`e2e/cloudevents`, on the official Go SDK) is started, and where it writes.

use std::path::{Path, PathBuf};

use crate::build;
use crate::harness::error::Result;
use crate::harness::process::Program;

/// A receiver on this port of loopback, without TLS unless the arguments `more` enable it. Built if necessary.
///
/// # Errors
/// If it cannot be built.
pub fn program(folder: &Path, port: u16, more: impl IntoIterator<Item = String>) -> Result<Program> {
    let own = [format!("-listen=127.0.0.1:{port}"), format!("-out={}", received(folder).display())];
    Ok(Program {
        name: "receiver".to_owned(),
        executable: build::event_receiver()?,
        arguments: own.into_iter().chain(more).map(Into::into).collect(),
        environment: Vec::new(),
        log: folder.join("receiver.log"),
    })
}

/// The file with the received events, one JSON object per line.
pub fn received(folder: &Path) -> PathBuf {
    folder.join("events.jsonl")
}
