//! Child processes that cannot outlive their caller (`child_process`, read it first), the system calls behind them
//! (`sys`), and temporary folders (`temp_folder`).

mod child_process;
mod sys;
mod temp_folder;

pub(crate) use child_process::tail;
pub use child_process::{KillHandle, Process, Program};
pub(crate) use sys::{spawn, terminate_group};
pub use temp_folder::TempFolder;
