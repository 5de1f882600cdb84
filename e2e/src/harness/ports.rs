//! Free ports on loopback.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};

use parking_lot::Mutex;
use rand::Rng;

use crate::harness::error::{Error, Result};

/// A free port on 127.0.0.1 that this process has not returned before. It is below the kernel's ephemeral range (32768
/// and up), so that no outgoing connection can take it while its server restarts. Another process may still take it
/// first: callers retry with another port on «address already in use».
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
