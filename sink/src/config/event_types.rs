//! The `type` attribute of each CloudEvent.

use job_handler_shared::result::pending_events::Phase;

/// The `type` of each phase's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types([String; 4]);

impl Default for Types {
    fn default() -> Self {
        Self(Phase::ALL.map(|phase| format!("io.job-handler.job.{}", phase.as_str())))
    }
}

impl Types {
    /// The type of this phase's events.
    pub fn of(&self, phase: Phase) -> &str {
        &self.0[phase as usize]
    }

    /// Sets it.
    pub fn set(&mut self, phase: Phase, to: String) {
        self.0[phase as usize] = to;
    }
}
