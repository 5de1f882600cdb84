//! Processes, waiting, ports, errors.

pub mod background_server;
pub mod error;
pub mod ports;
pub mod process;
pub mod progress;
pub mod wait;
