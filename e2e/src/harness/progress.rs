//! Lines for the person who waits.

use std::io::Write;

/// Writes a line to standard error, past libtest's capture (which holds only what the print macros
/// write): a build of minutes must not look like a hang.
pub fn print_line(line: &str) {
    // Whoever closed standard error does not want to hear it.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
