//! What was told and what was seen, for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// All steps of one telling.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order they were told.
    pub steps: Vec<StepReport>,
    /// Durations that users care about.
    pub timings: Vec<Timing>,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct StepReport {
    /// Short name, as `--break` of the tests and the JSON have it.
    pub name: &'static str,
    /// One line that says what it is about.
    pub title: &'static str,
    /// Whether it went as told.
    pub ok: bool,
    /// What differed.
    pub problem: Option<String>,
    /// What was seen, fact by fact.
    pub seen: Vec<String>,
    /// Commands that were run, with what they printed.
    pub commands: Vec<CommandReport>,
    /// Seconds the step took.
    pub seconds: f64,
}

/// One command.
#[derive(Debug, Serialize)]
pub struct CommandReport {
    /// As a person would type it.
    pub command: String,
    /// Whether it exited 0.
    pub ok: bool,
    /// What it printed.
    pub output: String,
}

/// One duration.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// What was timed.
    pub what: String,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds that users expect at most, where they do.
    pub expected: Option<f64>,
}

impl Report {
    /// Whether every step went as told.
    pub fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// The table of timings and the closing line.
    pub fn closing(&self) -> String {
        let mut text =
            String::from("\n  what                                              took   expected\n");
        for Timing { what, seconds, expected } in &self.timings {
            let expected = expected.map_or_else(|| "-".to_owned(), |e| format!("< {e:.0} s"));
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {what:<46} {seconds:>6.2} s   {expected}");
        }
        let failed: Vec<_> = self.steps.iter().filter(|s| !s.ok).map(|s| s.name).collect();
        let _ = match failed.as_slice() {
            [] => writeln!(text, "\n  All {} steps went as told.", self.steps.len()),
            names => writeln!(text, "\n  NOT as told: {}", names.join(", ")),
        };
        text
    }
}
