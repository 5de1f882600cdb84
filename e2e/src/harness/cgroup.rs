//! A cgroup with a memory limit, as the container of a pod has one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the memory controllers of both versions of cgroups are mounted.
const VERSION_1: &str = "/sys/fs/cgroup/memory";
const VERSION_2: &str = "/sys/fs/cgroup";

/// A cgroup in which the kernel kills a process rather than let them use more memory. Removed when dropped, if its
/// processes have ended.
#[derive(Debug)]
pub struct MemoryCgroup {
    folder: PathBuf,
    files: &'static CgroupFiles,
}

/// The names of a controller's files.
#[derive(Debug)]
struct CgroupFiles {
    limit: &'static str,
    /// The limit with swap, and how it follows from the limit. Absent without swap.
    swap: (&'static str, fn(u64) -> u64),
    peak: &'static str,
    /// Has a line `oom_kill N`.
    events: &'static str,
}

const FILES_1: CgroupFiles = CgroupFiles {
    limit: "memory.limit_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", |limit| limit),
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const FILES_2: CgroupFiles = CgroupFiles {
    limit: "memory.max",
    swap: ("memory.swap.max", |_| 0),
    peak: "memory.peak",
    events: "memory.events",
};

impl MemoryCgroup {
    /// A cgroup with a limit in bytes.
    ///
    /// # Errors
    /// If this machine cannot have one: no memory controller, or no right to it, as in most containers.
    pub fn create(name: &str, limit: u64) -> io::Result<Self> {
        let (root, files) = if Path::new(VERSION_1).join(FILES_1.limit).exists() {
            (VERSION_1, &FILES_1)
        } else {
            // Refused where the root of this namespace has processes of its own.
            fs::write(Path::new(VERSION_2).join("cgroup.subtree_control"), "+memory")?;
            (VERSION_2, &FILES_2)
        };
        let folder = Path::new(root).join(format!("job-handler-e2e-{name}-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let cgroup = Self { folder, files };
        cgroup.write(files.limit, limit)?;
        let (swap, of_limit) = files.swap;
        if cgroup.folder.join(swap).exists() {
            cgroup.write(swap, of_limit(limit))?;
        }
        Ok(cgroup)
    }

    /// Moves a process into the cgroup. What it uses already is not counted.
    ///
    /// # Errors
    /// If it has ended.
    pub fn add(&self, process: u32) -> io::Result<()> {
        self.write("cgroup.procs", process.into())
    }

    /// The most memory that was used at a time, in bytes, pages of files included.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn peak(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join(self.files.peak))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// How many processes were killed for their memory.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn kills(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.folder.join(self.files.events))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap_or("0").trim().parse().map_err(io::Error::other)
    }

    fn write(&self, file: &str, value: u64) -> io::Result<()> {
        fs::write(self.folder.join(file), value.to_string())
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A process that was killed may take a moment to leave. If one stays, so does the cgroup, until the machine restarts.
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
