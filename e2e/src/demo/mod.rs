//! The demo: the main job told through the real `kubectl`, on Jobs as they are written in the field.
//!
//! [`Story`] tells steps; each step runs commands, compares what it sees with what it tells, and fails where the two
//! differ. `cargo demo` boots a cluster, installs the pair and tells all of them; the tests break each step once.

mod report;
mod runner;
mod stage;
mod steps;

pub use report::{Report, StepReport, Timing};
pub use runner::{Ran, STEPS, Step, Story, StoryOptions};
pub use stage::{run, set_stage};
