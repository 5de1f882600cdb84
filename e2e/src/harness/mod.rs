//! Basics for all other rooms: child processes that end with their caller (`process/`), waiting for conditions, free
//! ports, servers in the background, kubeconfigs, errors, command lines, cgroups. Read `process/mod.rs` first.

pub(crate) mod background_server;
pub mod cgroup;
pub mod command_line;
pub mod error;
pub(crate) mod kubeconfig;
pub mod ports;
pub mod process;
pub mod progress;
pub mod wait;
