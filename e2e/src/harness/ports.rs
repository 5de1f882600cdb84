//! Free ports on loopback.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};

use parking_lot::Mutex;
use rand::Rng;

use crate::harness::error::{Error, Result};

/// A port on 127.0.0.1 that is free now and was not handed out before by this process.
///
/// It is taken from below the kernel's ephemeral range (32768 and up), so that no outgoing connection
/// can grab it while its owner is restarted. Another process may still win the race for it: whoever
/// starts a server on it retries with a fresh one on «address already in use».
///
/// # Errors
/// If no free port is found.
pub fn free() -> Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock();
    let given = given.get_or_insert_default();
    for _ in 0..2_000 {
        let port = rand::rng().random_range(18_000..32_000);
        if !given.contains(&port) && is_free(port) {
            given.insert(port);
            return Ok(port);
        }
    }
    Err(Error::Invalid("no free port between 18000 and 32000 on 127.0.0.1".to_owned()))
}

/// Whether a server could listen on the port of 127.0.0.1 now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
