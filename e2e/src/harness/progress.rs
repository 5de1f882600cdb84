//! Progress messages on the terminal.

use std::io::Write;

/// Writes a line to standard error. It bypasses libtest's capture, which covers only the print macros: a build that
/// takes minutes must not look like a hang.
pub fn print_line(line: &str) {
    // Standard error may be closed.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
