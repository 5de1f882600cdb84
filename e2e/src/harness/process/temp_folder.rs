//! A temporary folder that is removed with its owner, even if the owner is killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::error::{Error, Result};
use crate::harness::process::cleaner::Cleaner;

/// Killed processes may still be writing: retry until the folder is removed.
const REMOVE: &str =
    r#"for i in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1"; [ -e "$1" ] || exit 0; sleep 0.3; done"#;

/// A folder under the system's temporary folder. [`Drop`] removes it if it can. Otherwise a [`Cleaner`] does.
#[derive(Debug)]
pub struct TempFolder {
    path: PathBuf,
    _cleaner: Cleaner,
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
        Ok(Self { _cleaner: Cleaner::start(REMOVE, [&path])?, path })
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
    }
}
