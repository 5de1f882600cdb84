//! A temporary folder that is gone when its owner is, also when its owner is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::error::{Error, Result};
use crate::harness::process::sys;

/// A folder under the system's temporary folder.
///
/// [`Drop`] removes it in the ordinary case. For the others a sweeper, a tiny shell in a session of its
/// own, waits on a pipe whose other end only this process holds: when the process is gone, by whatever
/// way, the pipe closes and the sweeper removes the folder.
#[derive(Debug)]
pub struct TempFolder {
    path: PathBuf,
    sweeper: Option<Child>,
}

impl TempFolder {
    /// Makes a fresh folder.
    ///
    /// # Errors
    /// If the folder cannot be made or `sh` cannot be started.
    pub fn new() -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("job-handler-e2e-")
            .tempdir()
            .map_err(Error::io("making a temporary folder"))?
            .keep();
        let mut folder = Self { path, sweeper: None };
        let mut command = Command::new("sh");
        // The killed processes may still be writing: try again until it is gone.
        command
            .args(["-c", r#"cat; for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$0"; [ -e "$0" ] || exit 0; sleep 0.3; done"#])
            .arg(&folder.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        folder.sweeper = Some(sys::spawn_detached(command).map_err(Error::io("starting the sweeper (sh)"))?);
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        for _ in 0..10 {
            if std::fs::remove_dir_all(&self.path).is_ok() || !self.path.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let Some(mut sweeper) = self.sweeper.take() {
            drop(sweeper.stdin.take());
            let _ = sweeper.wait();
        }
    }
}
