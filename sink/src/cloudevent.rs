//! CloudEvents 1.0, structured JSON: what is told of a Job, and under which id. Pure.
//!
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>

/// Content type of a structured event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// What happened to a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It was started.
    Started,
    /// It succeeded.
    Completed,
    /// It failed.
    Failed,
    /// Its creation, or its start, was refused.
    Refused,
}

impl Phase {
    /// All.
    pub const ALL: [Self; 4] = [Self::Started, Self::Completed, Self::Failed, Self::Refused];

    /// Its word: in ids, manifests, metrics and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

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
