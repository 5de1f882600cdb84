//! The commands and checked facts of all steps, for the terminal and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// All steps of one run.
#[derive(Debug, Default, Serialize)]
pub struct DemoReport {
    /// In the order in which they ran.
    pub steps: Vec<StepReport>,
    /// Durations that users notice.
    pub timings: Vec<Timing>,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// [`DemoStep::name`](super::DemoStep::name).
    pub name: &'static str,
    /// The heading above the step.
    pub title: &'static str,
    /// Whether it passed.
    pub ok: bool,
    /// Why it failed.
    pub problem: Option<String>,
    /// The facts that it checked.
    pub seen: Vec<String>,
    /// The commands that it showed, with their output.
    pub commands: Vec<CommandReport>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// One command.
#[derive(Debug, Serialize)]
pub struct CommandReport {
    /// The command line.
    pub command: String,
    /// Whether it exited with 0.
    pub ok: bool,
    /// Standard output and standard error.
    pub output: String,
}

/// One duration.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// The operation.
    pub what: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// The maximum number of seconds, if there is one.
    pub expected: Option<f64>,
}

impl DemoReport {
    /// Whether every step passed.
    pub fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// The table of timings and the closing line.
    pub fn closing(&self) -> String {
        let mut text = format!("\n  {:<46} {:>8}   expected\n", "timing", "took");
        for Timing { what, seconds, expected } in &self.timings {
            let expected = expected.map_or_else(|| "-".to_owned(), |e| format!("< {e:.0} s"));
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {what:<46} {seconds:>6.2} s   {expected}");
        }
        let failed: Vec<_> = self.steps.iter().filter(|step| !step.ok).map(|step| step.name).collect();
        let _ = match failed.as_slice() {
            [] => writeln!(text, "\n  All {} steps passed.", self.steps.len()),
            names => writeln!(text, "\n  FAILED steps: {}", names.join(", ")),
        };
        text
    }
}
