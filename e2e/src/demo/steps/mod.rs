//! The steps: the commands that each runs, and the output that it expects. `builds.rs`, `hooks.rs` and `results.rs`
//! have the steps, `manifests.rs` the objects that they create. Read `builds.rs` first.

mod builds;
mod hooks;
mod manifests;
mod results;

pub(super) use builds::{duplicate, limit, reasons, stamp};
pub(super) use hooks::{prune, prune_command};
pub(super) use results::{results, warnings};

use crate::demo::runner::{CommandOutput, StepError};

/// Fails with the command's output unless the condition holds.
fn expect(holds: bool, expected: &str, output: &CommandOutput) -> Result<(), StepError> {
    if holds {
        return Ok(());
    }
    Err(format!("expected {expected}; output of `{}`:\n{}", output.command, output.screen().trim_end()))
}

/// Fails unless the command succeeded.
fn succeeded(output: CommandOutput) -> Result<CommandOutput, StepError> {
    expect(output.ok, "success", &output)?;
    Ok(output)
}

/// Fails unless the command failed with this text on standard error.
fn refused_with(output: &CommandOutput, text: &str) -> Result<(), StepError> {
    expect(!output.ok && output.stderr.contains(text), &format!("a refusal with `{text}`"), output)
}
