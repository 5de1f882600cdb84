//! Child processes that cannot outlive their caller.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::error::{Error, Result};
use crate::harness::process::sys::{self, spawn};
use parking_lot::{Mutex, MutexGuard};

/// The command line of a process, stored for restarts.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in messages.
    pub name: String,
    /// The executable.
    pub executable: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables added to the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The file that standard output and error are appended to.
    pub log: PathBuf,
}

/// A child process. It is killed when this value is dropped, and when the caller exits for any reason.
#[derive(Debug)]
pub struct Process {
    state: Arc<Mutex<ProcessState>>,
}

/// Kills a process from another thread; see [`Process::kill_handle`].
#[derive(Clone, Debug)]
pub struct KillHandle {
    state: Arc<Mutex<ProcessState>>,
}

#[derive(Debug)]
struct ProcessState {
    program: Program,
    child: Child,
    /// The length of the log when the process was started.
    log_from: u64,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// If the log cannot be opened or the executable cannot be started.
    pub fn start(program: Program) -> Result<Self> {
        let (child, log_from) = launch(&program)?;
        Ok(Self { state: Arc::new(Mutex::new(ProcessState { program, child, log_from })) })
    }

    /// Its name in messages.
    pub fn name(&self) -> String {
        self.lock().program.name.clone()
    }

    /// Its process id; that of the last run if it has exited.
    pub fn id(&self) -> u32 {
        self.lock().child.id()
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.lock().program.log.clone()
    }

    /// How it was started.
    pub fn program(&self) -> Program {
        self.lock().program.clone()
    }

    /// Its exit status, if it has exited.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.lock().child.try_wait().ok().flatten()
    }

    /// Fails with the end of the log if it has exited.
    ///
    /// # Errors
    /// [`Error::ProcessExited`].
    pub fn ensure_running(&self) -> Result<()> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => Err(Error::ProcessExited {
                name: self.name(),
                status: status.to_string(),
                log: self.log(),
                tail: tail(&self.log_since_start(), 30),
            }),
        }
    }

    /// Its log since the last start.
    pub fn log_since_start(&self) -> String {
        let (path, from) = {
            let state = self.lock();
            (state.program.log.clone(), state.log_from)
        };
        let bytes = std::fs::read(path).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// Kills it (SIGKILL) and waits until it has exited. Does nothing if it has exited already.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> Result<()> {
        self.kill_handle().kill()
    }

    /// A handle that kills it from another thread, also after it has exited.
    pub fn kill_handle(&self) -> KillHandle {
        KillHandle { state: Arc::clone(&self.state) }
    }

    /// Sends SIGTERM and waits; kills it after `grace`. Returns the exit status.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let until = Instant::now() + grace;
        while Instant::now() < until {
            if let Some(status) = self.exit_status() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()?;
        self.exit_status()
            .ok_or_else(|| Error::Invalid(format!("{} was killed but has no status", self.name())))
    }

    /// Pauses it (SIGSTOP) and waits until it has stopped.
    ///
    /// # Errors
    /// If it has exited, or the operating system refuses.
    pub fn stop(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if sys::is_stopped(self.id()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(Error::Invalid(format!("{} did not stop within 5 s after SIGSTOP", self.name())))
    }

    /// Continues a paused process (SIGCONT).
    ///
    /// # Errors
    /// If it has exited, or the operating system refuses.
    pub fn cont(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Restarts it with the same arguments; kills it first if it still runs.
    ///
    /// # Errors
    /// If the executable cannot be started.
    pub fn restart(&self) -> Result<()> {
        let program = self.program();
        self.restart_as(program)
    }

    /// Restarts it as another program, for example on another port.
    ///
    /// # Errors
    /// If the executable cannot be started.
    pub fn restart_as(&self, program: Program) -> Result<()> {
        self.kill()?;
        let mut state = self.lock();
        let (child, log_from) = launch(&program)?;
        *state = ProcessState { program, child, log_from };
        Ok(())
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.ensure_running()?;
        // The process is not reaped while this lock is held, so its id cannot belong to another process.
        let state = self.lock();
        sys::signal(state.child.id(), signal)
            .map_err(Error::io(format!("sending signal {signal} to {}", state.program.name)))
    }

    fn lock(&self) -> MutexGuard<'_, ProcessState> {
        lock(&self.state)
    }
}

impl KillHandle {
    /// Kills it (SIGKILL) and waits until it has exited. Does nothing if it has exited already.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let name = state.program.name.clone();
        state.child.kill().map_err(Error::io(format!("killing {name}")))?;
        state.child.wait().map_err(Error::io(format!("waiting for {name} to end")))?;
        Ok(())
    }
}

fn lock(state: &Mutex<ProcessState>) -> MutexGuard<'_, ProcessState> {
    state.lock()
}

impl Drop for Process {
    fn drop(&mut self) {
        // If this fails, the parent-death signal still ends it.
        let _ = self.kill();
    }
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

fn launch(program: &Program) -> Result<(Child, u64)> {
    let log = open_log(&program.log)?;
    let log_from = log.metadata().map_or(0, |metadata| metadata.len());
    let copy = log.try_clone().map_err(Error::io("sharing a log file"))?;
    let mut command = Command::new(&program.executable);
    command
        .args(&program.arguments)
        .envs(program.environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(copy);
    let what = format!("starting {} ({})", program.name, program.executable.display());
    let child = spawn(command).map_err(Error::io(what))?;
    Ok((child, log_from))
}

fn open_log(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("opening the log file {}", path.display())))
}
