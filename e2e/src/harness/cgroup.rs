//! A limit on the memory of a process, as the container of a pod has one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::error::{Error, Result};

/// Where the memory controllers of both versions of cgroups are mounted.
const VERSION_1: &str = "/sys/fs/cgroup/memory";
const VERSION_2: &str = "/sys/fs/cgroup";

/// The memory limit of one process. Where the machine can make no cgroup, as in most containers, the kernel does not kill the
/// process: only [`Self::check`] finds that it used more.
#[derive(Debug)]
pub struct MemoryLimit {
    process: u32,
    bytes: u64,
    cgroup: Option<MemoryCgroup>,
}

impl MemoryLimit {
    /// Limits a process to this many bytes. What it uses already is not counted by a cgroup.
    ///
    /// # Errors
    /// If it has ended.
    pub fn apply(name: &str, process: u32, bytes: u64) -> Result<Self> {
        let cgroup = match MemoryCgroup::create(name, bytes) {
            Ok(cgroup) => {
                cgroup.add(process).map_err(Error::io(format!("moving process {process} into a cgroup")))?;
                Some(cgroup)
            }
            Err(error) => {
                println!("no cgroup limits the memory of {name}, its peak alone is checked: {error}");
                None
            }
        };
        Ok(Self { process, bytes, cgroup })
    }

    /// Checks that the process stayed within its limit so far, and returns its peak in bytes, without the pages of files: those
    /// of a program that is built for debugging are many, and the kernel drops them where memory is short.
    ///
    /// # Errors
    /// If it used more, was killed, or has ended.
    pub fn check(&self) -> Result<u64> {
        let of_cgroup = self.cgroup.as_ref().map_or(Ok(0), MemoryCgroup::kills);
        let kills = of_cgroup.map_err(Error::io("reading the events of a cgroup"))?;
        if kills > 0 {
            return Err(Error::Invalid(format!("the kernel killed process {} for its memory", self.process)));
        }
        let path = format!("/proc/{}/status", self.process);
        let status = fs::read_to_string(&path).map_err(Error::io(format!("reading {path}")))?;
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
            let kib: Option<u64> = line.and_then(|number| number.parse().ok());
            kib.map(|kib| kib << 10).ok_or_else(|| Error::Invalid(format!("{path} has no {key}")))
        };
        let peak = bytes("VmHWM:")?.saturating_sub(bytes("RssFile:")?);
        if peak > self.bytes {
            return Err(Error::Invalid(format!(
                "process {} used {peak} bytes of {}",
                self.process, self.bytes
            )));
        }
        Ok(peak)
    }
}

/// A cgroup in which the kernel kills a process rather than let them use more memory. Removed when dropped, if its
/// processes have ended.
#[derive(Debug)]
struct MemoryCgroup {
    folder: PathBuf,
    files: &'static CgroupFiles,
}

/// The names of a controller's files.
#[derive(Debug)]
struct CgroupFiles {
    limit: &'static str,
    /// The limit with swap, and how it follows from the limit. Absent without swap.
    swap: (&'static str, fn(u64) -> u64),
    /// Has a line `oom_kill N`.
    events: &'static str,
}

const FILES_1: CgroupFiles = CgroupFiles {
    limit: "memory.limit_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", |limit| limit),
    events: "memory.oom_control",
};
const FILES_2: CgroupFiles =
    CgroupFiles { limit: "memory.max", swap: ("memory.swap.max", |_| 0), events: "memory.events" };

impl MemoryCgroup {
    /// A cgroup with a limit in bytes. Fails where there is no memory controller, or no right to it.
    fn create(name: &str, limit: u64) -> io::Result<Self> {
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

    /// Moves a process into the cgroup.
    fn add(&self, process: u32) -> io::Result<()> {
        self.write("cgroup.procs", process.into())
    }

    /// How many processes were killed for their memory.
    fn kills(&self) -> io::Result<u64> {
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
