//! Builds webhook and sink with cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use parking_lot::Mutex;

use crate::build::builder::Builder;
use crate::build::named_by;
use crate::harness::error::{Error, Result};

/// Names a folder that holds `job-handler-webhook` and `job-handler-sink` instead of building them.
pub const PAIR_BIN_DIR: &str = "JOB_HANDLER_BIN_DIR";

const PROGRAMS: [&str; 3] = ["job-handler-webhook", "job-handler-sink", "kubectl-job_results"];

/// Finds or builds the pair, and returns the folder that holds both programs. Once per process, so that edits
/// during a test run have no effect on it.
///
/// # Errors
/// If the build fails.
pub fn pair_programs() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock();
    if let Some(folder) = &*built {
        return Ok(folder.clone());
    }
    let folder = match named_by(PAIR_BIN_DIR)? {
        Some(folder) => folder,
        None => build()?,
    };
    *built = Some(folder.clone());
    Ok(folder)
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command.args(["build", "--message-format=json-render-diagnostics"]);
    // `--workspace`, although only these programs are needed: cargo then selects the same features of all dependencies
    // as in the build of this package, so that no crate is compiled twice.
    command.arg("--workspace");
    command.args(PROGRAMS.map(|program| format!("--bin={program}")));
    // The profile that this code is built with.
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // Set by an enclosing `cargo run` or `cargo test` for its own package; a nested build must not see it.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_PKG_") || key == "CARGO_MANIFEST_DIR" {
            command.env_remove(key);
        }
    }
    let what = "the pair (job-handler-webhook, job-handler-sink)";
    let messages = Builder { what, duration: "under a minute", steps: None }.run(command)?;
    executables(&messages)
        .find_map(|path| path.parent().map(Path::to_path_buf))
        .ok_or_else(|| Error::Invalid("cargo built the pair but named no executable".to_owned()))
}

/// The executables that cargo's JSON messages name.
fn executables(messages: &str) -> impl Iterator<Item = PathBuf> + '_ {
    messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","executable":null}"#,
            "\nnot JSON\n",
            r#"{"reason":"compiler-artifact","executable":"/t/debug/job-handler-sink"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages).collect::<Vec<_>>(), [PathBuf::from("/t/debug/job-handler-sink")]);
    }
}
