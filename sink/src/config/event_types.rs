//! The `type` attribute of each CloudEvent.

use job_handler_shared::result::pending_events::JobPhase;

/// The `type` of each phase's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types([String; 4]);

impl Default for Types {
    fn default() -> Self {
        Self(JobPhase::ALL.map(|phase| format!("io.job-handler.job.{}", phase.as_str())))
    }
}

impl Types {
    /// The type of this phase's events.
    pub fn of(&self, phase: JobPhase) -> &str {
        &self.0[phase as usize]
    }

    /// Sets it.
    pub fn set(&mut self, phase: JobPhase, to: String) {
        self.0[phase as usize] = to;
    }
}
