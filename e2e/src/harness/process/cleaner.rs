//! Cleans up when this process has ended, even if it is killed.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};

use crate::harness::error::{Error, Result};
use crate::harness::process::sys;

/// A small shell in a session of its own. It waits on a pipe whose other end only this process holds, and runs a script
/// when the pipe closes: because this value is dropped, which waits for the script, or because the process has ended.
#[derive(Debug)]
pub(crate) struct Cleaner {
    shell: Child,
}

impl Cleaner {
    /// Starts the shell. The script gets the arguments as `$1` and so on.
    pub(crate) fn start(
        script: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("cat; {script}"), "cleaner"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let shell = sys::spawn_detached(command).map_err(Error::io("starting a cleaner (sh)"))?;
        Ok(Self { shell })
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
