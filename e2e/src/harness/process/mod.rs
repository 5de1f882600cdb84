//! Child processes that cannot outlive their caller (`child_process`, read it first), the system calls behind them
//! (`sys`), temporary folders (`temp_folder`), and what removes them if the caller is killed (`cleaner`).

mod child_process;
mod cleaner;
mod sys;
mod temp_folder;

pub(crate) use child_process::tail;
pub use child_process::{KillHandle, Process, Program};
pub(crate) use cleaner::Cleaner;
pub(crate) use sys::{spawn, terminate_group};
pub use temp_folder::TempFolder;
