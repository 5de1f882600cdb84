//! Types shared by all rooms.

pub mod manifest;
