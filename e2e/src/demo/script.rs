//! The steps of the demo, in the order in which they run.

use std::time::Instant;

use crate::demo::runner::DemoRunner;
use crate::demo::steps;

/// All steps, in the order in which they run.
pub const STEPS: [DemoStep; 8] = [
    DemoStep::Stamp,
    DemoStep::Limit,
    DemoStep::Duplicate,
    DemoStep::Prune,
    DemoStep::PruneCommand,
    DemoStep::Reasons,
    DemoStep::Results,
    DemoStep::Warnings,
];

/// One step of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoStep {
    /// A build gets a TTL, a deadline, a backoff limit, labels and a group.
    Stamp,
    /// Eleven builds under a limit of ten.
    Limit,
    /// The same build twice.
    Duplicate,
    /// Only the newest hook Job of each application stays; failed ones are deleted at once.
    Prune,
    /// `job-handler-sink prune` as a dry run, on Jobs that no policy selects.
    PruneCommand,
    /// The policy, the CronJob and the refused Job's name show why a Job was refused.
    Reasons,
    /// The results of a successful and of a failed Job, logs included.
    Results,
    /// Failures as Events.
    Warnings,
}

impl DemoStep {
    /// Its name in the JSON report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stamp => "stamp",
            Self::Limit => "limit",
            Self::Duplicate => "duplicate",
            Self::Prune => "prune",
            Self::PruneCommand => "prune-command",
            Self::Reasons => "reasons",
            Self::Results => "results",
            Self::Warnings => "warnings",
        }
    }

    /// The heading that is printed above the step.
    pub fn title(self) -> &'static str {
        match self {
            Self::Stamp => "A new build gets the settings that its author left out",
            Self::Limit => "Eleven builds, a limit of ten",
            Self::Duplicate => "The same build again, while the first one still runs",
            Self::Prune => {
                "GitOps hooks: only the newest Job of each application stays, failed Jobs are deleted at once"
            }
            Self::PruneCommand => "Old hook Jobs without a policy: the prune command, as a dry run",
            Self::Reasons => "Why was a Job refused? Three places show the reason",
            Self::Results => "The stored results of a successful and of a failed build, with logs",
            Self::Warnings => "What failed today?",
        }
    }
}

impl DemoRunner<'_> {
    /// Runs one step, adds it to the report, and returns whether it passed.
    pub async fn run_step(&mut self, step: DemoStep) -> bool {
        self.begin_step(step.name(), step.title());
        let begun = Instant::now();
        let result = match step {
            DemoStep::Stamp => steps::stamp(self).await,
            DemoStep::Limit => steps::limit(self).await,
            DemoStep::Duplicate => steps::duplicate(self).await,
            DemoStep::Prune => steps::prune(self).await,
            DemoStep::PruneCommand => steps::prune_command(self).await,
            DemoStep::Reasons => steps::reasons(self).await,
            DemoStep::Results => steps::results(self).await,
            DemoStep::Warnings => steps::warnings(self).await,
        };
        self.end_step(step.name(), step.title(), begun.elapsed(), result)
    }
}
