//! Stores built programs in the user's cache, in one folder per state of the sources.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::harness::error::{Error, Result};
use crate::harness::progress::print_line;

/// Returns `<cache>/job-handler/<entry>/<program>` and builds it first if it does not exist. `build` writes to a
/// temporary path, which is then renamed, so that an incomplete program is never run. A lock keeps two processes from
/// building the same program at once.
pub(super) fn build_once(
    entry: &str,
    program: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    build_once_in(&root()?.join(entry), program, build)
}

fn build_once_in(folder: &Path, program: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let target = folder.join(program);
    if target.is_file() {
        return Ok(target);
    }
    std::fs::create_dir_all(folder).map_err(Error::io(format!("creating {}", folder.display())))?;
    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).map_err(Error::io(format!("opening {}", lock_path.display())))?;
    if lock.try_lock().is_err() {
        print_line(&format!("another process is building {program}; waiting for it"));
        lock.lock().map_err(Error::io(format!("locking {}", lock_path.display())))?;
    }
    if target.is_file() {
        return Ok(target);
    }
    let unfinished = folder.join(format!("{program}.{}", std::process::id()));
    build(&unfinished).inspect_err(|_| {
        // The build may have failed before it wrote anything.
        let _ = std::fs::remove_file(&unfinished);
    })?;
    std::fs::rename(&unfinished, &target)
        .map_err(Error::io(format!("moving {} into place", unfinished.display())))?;
    Ok(target)
}

/// A digest of the Go sources of a folder and of all other inputs of the build.
pub(super) fn digest(folder: &Path, more: &[impl AsRef<str>]) -> Result<String> {
    let reading = || format!("reading {}", folder.display());
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(Error::io(reading()))?;
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        matches!(&*name, "go.mod" | "go.sum") || (name.ends_with(".go") && !name.ends_with("_test.go"))
    });
    files.sort();
    let mut hash = Sha256::new();
    for path in &files {
        let content = std::fs::read(path).map_err(Error::io(reading()))?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    for text in more {
        hash.update(text.as_ref().as_bytes());
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn root() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("job-handler"))
        .ok_or_else(|| {
            Error::Invalid(
                "neither XDG_CACHE_HOME nor HOME is set: there is no folder for built programs".to_owned(),
            )
        })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn concurrent_callers_build_once_and_share_the_result() {
        let folder = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        let build = |half: &Path| {
            builds.fetch_add(1, Ordering::SeqCst);
            assert!(!folder.path().join("tool").exists(), "it was built again");
            std::fs::write(half, "half").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
            std::fs::write(half, "complete").map_err(Error::io("writing"))
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let path = build_once_in(folder.path(), "tool", build).unwrap();
                    assert_eq!(std::fs::read_to_string(path).unwrap(), "complete");
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_build_leaves_no_program_and_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let fails = |half: &Path| {
            std::fs::write(half, "half").unwrap();
            Err(Error::Invalid("no compiler".to_owned()))
        };
        assert!(build_once_in(folder.path(), "tool", fails).is_err());
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
        let works = |half: &Path| std::fs::write(half, "complete").map_err(Error::io("writing"));
        assert!(build_once_in(folder.path(), "tool", works).is_ok());
    }

    #[test]
    fn the_digest_depends_on_sources_and_flags_only() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("go.sum", "a");
        write("main.go", "package main");
        let first = digest(folder.path(), &["v1"]).unwrap();
        write("main_test.go", "package main");
        write("notes.md", "hello");
        assert_eq!(first, digest(folder.path(), &["v1"]).unwrap());
        assert_ne!(first, digest(folder.path(), &["v2"]).unwrap());
        write("go.sum", "b");
        assert_ne!(first, digest(folder.path(), &["v1"]).unwrap());
    }
}
