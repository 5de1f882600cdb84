//! The `type` attribute of CloudEvents.

use job_handler_shared::result::pending_events::JobPhase;

/// The `type` attribute of the events of each phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventTypes([String; 4]);

impl Default for EventTypes {
    fn default() -> Self {
        Self(JobPhase::ALL.map(|phase| format!("io.job-handler.job.{}", phase.as_str())))
    }
}

impl EventTypes {
    pub(crate) fn of(&self, phase: JobPhase) -> &str {
        &self.0[phase as usize]
    }

    pub(super) fn set(&mut self, phase: JobPhase, to: String) {
        self.0[phase as usize] = to;
    }
}
