//! The steps: what is run, what is told, what has to be seen.

mod builds;
mod hooks;
mod manifests;
mod results;

pub(super) use builds::{Builds, duplicate, limit, reasons, stamp};
pub(super) use hooks::{prune, sweep};
pub(super) use results::{results, warnings};

use crate::demo::runner::{Problem, Ran};

/// Holds what was seen against what was told.
fn expect(holds: bool, told: &str, ran: &Ran) -> Result<(), Problem> {
    if holds {
        return Ok(());
    }
    Err(format!("expected {told}; `{}` said:\n{}", ran.command, ran.screen().trim_end()))
}

/// That the command succeeded.
fn succeeded(ran: Ran) -> Result<Ran, Problem> {
    expect(ran.ok, "success", &ran)?;
    Ok(ran)
}

/// That a command failed, with this in its output.
fn refused_with(ran: &Ran, text: &str) -> Result<(), Problem> {
    expect(!ran.ok && ran.stderr.contains(text), &format!("a refusal with `{text}`"), ran)
}
