//! A temporary folder that is removed with its owner, even if the owner is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::error::{Error, Result};
use crate::harness::process::sys;

/// A folder under the system's temporary folder. [`Drop`] removes it if it can. Otherwise a cleaner does, a small shell
/// in a session of its own: it waits on a pipe whose other end only this process holds, and removes the folder when the
/// pipe closes because the process has ended.
#[derive(Debug)]
pub struct TempFolder {
    path: PathBuf,
    cleaner: Option<Child>,
}

impl TempFolder {
    /// Creates a folder.
    ///
    /// # Errors
    /// If the folder cannot be created or `sh` cannot be started.
    pub fn new() -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix("job-handler-e2e-")
            .tempdir()
            .map_err(Error::io("creating a temporary folder"))?
            .keep();
        let mut folder = Self { path, cleaner: None };
        let mut command = Command::new("sh");
        // Killed processes may still be writing: retry until the folder is removed.
        command
            .args(["-c", r#"cat; for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$0"; [ -e "$0" ] || exit 0; sleep 0.3; done"#])
            .arg(&folder.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        folder.cleaner = Some(sys::spawn_detached(command).map_err(Error::io("starting the cleaner (sh)"))?);
        Ok(folder)
    }

    /// Its path.
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
        if let Some(mut cleaner) = self.cleaner.take() {
            drop(cleaner.stdin.take());
            let _ = cleaner.wait();
        }
    }
}
