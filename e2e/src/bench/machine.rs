//! What the kernel tells about a process and about the machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::error::{Error, Result};

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub now: u64,
    /// Resident at most so far (`VmHWM`).
    pub peak: u64,
}

/// The machine and the versions that figures were taken with.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Hardware threads that this process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Kernel release.
    pub kernel: String,
    /// `rustc --version`.
    pub rustc: String,
    /// Runnable threads over the last minute, as the bench began: what else the machine was doing.
    pub load: f64,
}

/// Processor time (user and system, all threads) that a process has used.
///
/// # Errors
/// If there is no such process.
pub fn processor_time(process: u32) -> Result<Duration> {
    // proc_pid_stat(5), fields 14 and 15, in units of USER_HZ, which is 100 to user space on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let stat = read(&format!("/proc/{process}/stat"))?;
    let ticks = || {
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ').skip(11);
        let mut next = || fields.next()?.parse::<u32>().ok();
        Some(next()? + next()?)
    };
    let ticks =
        ticks().ok_or_else(|| Error::Invalid(format!("/proc/{process}/stat has another form: {stat}")))?;
    Ok(TICK * ticks)
}

/// Processor time that this thread has used.
///
/// # Errors
/// If the kernel does not count it.
pub fn thread_time() -> Result<Duration> {
    // proc_pid_schedstat: the first number is the time on a processor, nanoseconds.
    let text = read("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    let wrong = || Error::Invalid(format!("/proc/thread-self/schedstat has another form: {text}"));
    nanoseconds.map(Duration::from_nanos).ok_or_else(wrong)
}

/// Memory that a process uses.
///
/// # Errors
/// If there is no such process.
pub fn memory(process: u32) -> Result<Memory> {
    let status = read(&format!("/proc/{process}/status"))?;
    let kib = |key: &str| kibibytes(&status, key).map(|kib| kib << 10);
    Ok(Memory { now: kib("VmRSS:")?, peak: kib("VmHWM:")? })
}

/// Lets the peak of a process' memory begin anew at what it has now.
///
/// # Errors
/// If there is no such process, or it is somebody else's.
pub fn reset_peak(process: u32) -> Result<()> {
    // proc_pid_clear_refs(5): 5 resets VmHWM.
    let path = format!("/proc/{process}/clear_refs");
    fs::write(&path, "5").map_err(Error::io(format!("writing {path}")))
}

/// Looks at the machine.
///
/// # Errors
/// If `/proc` does not tell.
pub fn machine() -> Result<Machine> {
    let cpuinfo = read("/proc/cpuinfo")?;
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let rustc = Command::new("rustc").arg("--version").output().map_err(Error::io("asking rustc"))?;
    Ok(Machine {
        processor: processor.to_owned(),
        cores: std::thread::available_parallelism().map_or(1, Into::into),
        memory: kibibytes(&read("/proc/meminfo")?, "MemTotal:")? << 10,
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        rustc: String::from_utf8_lossy(&rustc.stdout).trim().to_owned(),
        load: load()?,
    })
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { processor, cores, memory, kernel, rustc, load } = self;
        let version = env!("CARGO_PKG_VERSION");
        let gib = *memory as f64 / f64::from(1 << 30);
        write!(
            f,
            "Machine: {cores} cores ({processor}), {gib:.0} GiB, Linux {kernel}; load average at the start {load}. "
        )?;
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        write!(f, "Built by {rustc}, {profile} profile; job-handler {version}.")
    }
}

fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    first.ok_or_else(|| Error::Invalid(format!("/proc/loadavg has another form: {text}")))
}

fn kibibytes(text: &str, key: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| Error::Invalid(format!("expected a line `{key} … kB`, found:\n{text}")))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_process_work() {
        let me = std::process::id();
        let before = processor_time(me).unwrap();
        let begin = std::time::Instant::now();
        let mut sum = 0_u64;
        while processor_time(me).unwrap() <= before {
            assert!(begin.elapsed() < Duration::from_secs(20), "no tick in 20 s of work");
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let memory = memory(me).unwrap();
        assert!(memory.peak >= memory.now && memory.now > 1 << 20, "{memory:?}");
        assert!(processor_time(u32::MAX).is_err());
    }

    #[test]
    fn sees_the_machine() {
        let machine = machine().unwrap();
        assert!(machine.cores >= 1 && machine.memory > 1 << 28, "{machine:?}");
        assert!(machine.rustc.starts_with("rustc 1."), "{machine:?}");
    }
}
