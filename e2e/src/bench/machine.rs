//! Processor time and memory of processes, and a description of the machine, from `/proc`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::error::{Error, Result};

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set (`VmRSS`).
    pub now: u64,
    /// Peak of the resident set (`VmHWM`).
    pub peak: u64,
}

/// The machine and the versions that the figures were measured with.
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
    /// Load average of the last minute when the benchmark began.
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
    let ticks = ticks()
        .ok_or_else(|| Error::Invalid(format!("/proc/{process}/stat has an unknown format: {stat}")))?;
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
    let wrong = || Error::Invalid(format!("/proc/thread-self/schedstat has an unknown format: {text}"));
    nanoseconds.map(Duration::from_nanos).ok_or_else(wrong)
}

/// Memory that a process uses.
///
/// # Errors
/// If there is no such process.
pub fn memory(process: u32) -> Result<ProcessMemory> {
    let status = read(&format!("/proc/{process}/status"))?;
    let kib = |key: &str| kibibytes(&status, key).map(|kib| kib << 10);
    Ok(ProcessMemory { now: kib("VmRSS:")?, peak: kib("VmHWM:")? })
}

/// Resets the peak of a process' memory to its current value.
///
/// # Errors
/// If there is no such process, or it belongs to another user.
pub fn reset_peak(process: u32) -> Result<()> {
    // proc_pid_clear_refs(5): 5 resets VmHWM.
    let path = format!("/proc/{process}/clear_refs");
    fs::write(&path, "5").map_err(Error::io(format!("writing {path}")))
}

/// Describes the machine.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn machine() -> Result<Machine> {
    let cpuinfo = read("/proc/cpuinfo")?;
    let processor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let rustc =
        Command::new("rustc").arg("--version").output().map_err(Error::io("running rustc --version"))?;
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
    first.ok_or_else(|| Error::Invalid(format!("/proc/loadavg has an unknown format: {text}")))
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
    fn processor_time_and_memory_of_this_process() {
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
    fn the_machine_is_described() {
        let machine = machine().unwrap();
        assert!(machine.cores >= 1 && machine.memory > 1 << 28, "{machine:?}");
        assert!(machine.rustc.starts_with("rustc 1."), "{machine:?}");
    }
}
