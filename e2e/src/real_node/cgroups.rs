//! The cgroup that holds a node's processes and containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::error::{Error, Result};
use crate::harness::process::Cleaner;

const MOUNTS: &str = "/sys/fs/cgroup";
/// The name of a node's cgroup is this, the id of the process that made it, and a number.
const PREFIX: &str = "job-handler-e2e-node-";

/// Removes cgroups and those below them. Killed processes may take a moment to leave; what stays is left to the next
/// run.
const REMOVE: &str = r#"for i in $(seq 50); do
    find "$@" -depth -type d -exec rmdir {} \; 2>/dev/null
    find "$@" -print -quit 2>/dev/null | grep -q . || exit 0
    sleep 0.1
done"#;

/// A cgroup in every hierarchy of the machine, removed when it is dropped and when this process has ended.
#[derive(Debug)]
pub(super) struct NodeCgroup {
    name: String,
    _cleaner: Cleaner,
}

impl NodeCgroup {
    /// Creates the cgroup of a node, with a child `runtime` for its processes: cgroups of version 2 have either
    /// processes or children.
    pub(super) fn create() -> Result<Self> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let folders: Vec<PathBuf> = hierarchies().iter().map(|hierarchy| hierarchy.join(&name)).collect();
        let cgroup = Self { name, _cleaner: Cleaner::start(REMOVE, &folders)? };
        for folder in folders.iter().flat_map(|folder| [folder.clone(), folder.join("runtime")]) {
            fs::create_dir_all(&folder)
                .and_then(|()| inherit_cpus(&folder))
                .map_err(Error::io(format!("creating the cgroup {}", folder.display())))?;
        }
        Ok(cgroup)
    }

    /// Its name, the same in every hierarchy.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Removes the cgroups that runs left whose cleaners were killed, too.
pub(super) fn remove_abandoned() {
    for hierarchy in hierarchies() {
        for folder in subfolders(&hierarchy) {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
            if maker.is_some_and(|(maker, _)| !Path::new("/proc").join(maker).exists()) {
                // One that still has a process is left to the run after this.
                let _ = remove(&folder);
            }
        }
    }
}

/// The mounts of cgroups: one of version 2, or one per controller of version 1.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = Path::new(MOUNTS);
    if mounts.join("cgroup.controllers").exists() {
        return vec![mounts.to_owned()];
    }
    let folders = subfolders(mounts).into_iter().filter(|folder| folder.join("cgroup.procs").exists());
    folders.collect()
}

/// Folders, without symbolic links: some machines link `cpu` to `cpu,cpuacct`.
fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// In version 1, a new cgroup takes no process before it has processors and memory nodes.
fn inherit_cpus(folder: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (folder.join(file), folder.join("..").join(file));
        if own.exists() && parent.exists() && fs::read_to_string(&own)?.trim().is_empty() {
            fs::write(own, fs::read_to_string(parent)?)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> io::Result<()> {
    subfolders(folder).iter().try_for_each(|child| remove(child))?;
    fs::remove_dir(folder)
}
