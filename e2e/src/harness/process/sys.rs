//! The system calls behind [`super::Process`]; everything `unsafe` of this crate is in this file.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

type SpawnRequest = (Command, Sender<io::Result<Child>>);

/// Spawns a child that the kernel kills when this process ends.
///
/// The parent-death signal is bound to the *thread* that forked (prctl(2)), and test threads end long
/// before their process does. So all children are forked by one thread that never ends.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<SpawnRequest>>> = OnceLock::new();
    // A process group of its own keeps Ctrl-C at the terminal from reaching the child before us.
    command.process_group(0);
    die_with_parent(&mut command);
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<SpawnRequest>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // If the caller has gone, its child is dropped and ends with this process.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, reply) = channel();
    spawner.lock().send((command, answer)).map_err(|_| io::Error::other("the spawner thread is gone"))?;
    reply.recv().map_err(|_| io::Error::other("the spawner thread is gone"))?
}

/// Spawns a child that outlives this process, in a session of its own, which gets no signals of the terminal.
pub(crate) fn spawn_detached(mut command: Command) -> io::Result<Child> {
    #[allow(unsafe_code, reason = "std has no safe way to call setsid in a child")]
    // SAFETY: setsid(2) is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| if libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    command.spawn()
}

/// Sends a signal to a child that was not waited for yet.
pub(crate) fn signal(process: u32, signal: libc::c_int) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).map_err(io::Error::other)?;
    #[allow(unsafe_code, reason = "std can only send SIGKILL")]
    // SAFETY: kill(2) takes plain integers.
    let result = unsafe { libc::kill(process, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends SIGTERM to a child that was not waited for yet and to its children; [`spawn`] gave it its own process group.
pub(crate) fn terminate_group(process: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(process).map_err(io::Error::other)?;
    #[allow(unsafe_code, reason = "std can only send SIGKILL, and to one process")]
    // SAFETY: killpg(3) takes plain integers.
    let result = unsafe { libc::killpg(group, libc::SIGTERM) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a process is stopped after SIGSTOP (state `T` in proc_pid_stat(5)).
pub(crate) fn is_stopped(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The command name, in parentheses, may hold anything; the state follows the last one.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    #[allow(unsafe_code, reason = "std has no safe way to set the parent-death signal")]
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, both async-signal-safe, and
    // the closure captures one integer.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was armed.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::other("the parent is gone"));
            }
            Ok(())
        });
    }
}
