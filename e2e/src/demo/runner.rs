//! The teller: runs commands, prints them with their output, compares, remembers.

use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::process::Command;

use crate::Cluster;
use crate::demo::{
    report::{CommandReport, Report, StepReport, Timing},
    steps,
};

/// Pause between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(100);
/// Lines of a command's output that are printed.
const SHOWN_LINES: usize = 12;

/// The steps, in the order they are told.
pub const STEPS: [Step; 8] = [
    Step::Stamp,
    Step::Limit,
    Step::Duplicate,
    Step::Prune,
    Step::Sweep,
    Step::Reasons,
    Step::Results,
    Step::Warnings,
];

/// One step of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A build gets TTL, deadline, backoff limit, labels and a group.
    Stamp,
    /// Eleven builds, ten slots.
    Limit,
    /// The same build twice.
    Duplicate,
    /// The newest hook Job of each application stays; failed ones go at once.
    Prune,
    /// The one-shot cleaner as a dry run, on Jobs under no policy.
    Sweep,
    /// Why: on the policy, on the CronJob, on the refused name.
    Reasons,
    /// A success and a failure, logs included.
    Results,
    /// Failures as Events.
    Warnings,
}

impl Step {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stamp => "stamp",
            Self::Limit => "limit",
            Self::Duplicate => "duplicate",
            Self::Prune => "prune",
            Self::Sweep => "sweep",
            Self::Reasons => "reasons",
            Self::Results => "results",
            Self::Warnings => "warnings",
        }
    }

    /// What it is about.
    pub fn title(self) -> &'static str {
        match self {
            Self::Stamp => "A build comes in and gets what its author left out",
            Self::Limit => "Eleven builds, ten slots",
            Self::Duplicate => "The same build once more, while it runs",
            Self::Prune => "GitOps hooks: the newest of each application stays, a failed one goes at once",
            Self::Sweep => "Old hooks under no policy: the one-shot cleaner, as a dry run",
            Self::Reasons => "Why was it refused? Three places answer",
            Self::Results => "A success and a failure, read back with their logs",
            Self::Warnings => "What failed today?",
        }
    }
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// As a person would type it.
    pub command: String,
    /// Whether it exited 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Both outputs, as a terminal shows them.
    pub fn screen(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// What a story needs besides a cluster with the pair installed.
#[derive(Clone, Debug)]
pub struct StoryOptions {
    /// The `job-handler-sink` program, for the one-shot cleaner.
    pub sink: PathBuf,
    /// How long a step waits for what it tells.
    pub patience: Duration,
    /// How long the ten builds run at least.
    pub builds_run: Duration,
    /// Whether to print.
    pub quiet: bool,
}

/// Why a step did not go as told.
pub(super) type Problem = String;

/// A telling.
pub struct Story<'a> {
    cluster: &'a Cluster,
    pub(super) options: StoryOptions,
    pub(super) builds: steps::Builds,
    /// How often the step was told before; names differ from one telling to the next.
    told_before: usize,
    report: Report,
    commands: Vec<CommandReport>,
    seen: Vec<String>,
}

impl<'a> Story<'a> {
    /// A story that was not begun.
    pub fn new(cluster: &'a Cluster, options: StoryOptions) -> Self {
        Self {
            cluster,
            options,
            builds: steps::Builds::default(),
            told_before: 0,
            report: Report::default(),
            commands: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Tells one step; whether it went as told.
    pub async fn tell(&mut self, step: Step) -> bool {
        self.told_before = self.report.steps.iter().filter(|told| told.name == step.name()).count();
        let number = self.report.steps.len() + 1;
        self.say(&format!("\n{number}. {}\n", step.title()));
        let begun = Instant::now();
        let result = match step {
            Step::Stamp => steps::stamp(self).await,
            Step::Limit => steps::limit(self).await,
            Step::Duplicate => steps::duplicate(self).await,
            Step::Prune => steps::prune(self).await,
            Step::Sweep => steps::sweep(self).await,
            Step::Reasons => steps::reasons(self).await,
            Step::Results => steps::results(self).await,
            Step::Warnings => steps::warnings(self).await,
        };
        if let Err(problem) = &result {
            self.say(&format!("   ✗ NOT AS TOLD: {problem}\n"));
        }
        self.report.steps.push(StepReport {
            name: step.name(),
            title: step.title(),
            ok: result.is_ok(),
            problem: result.err(),
            seen: std::mem::take(&mut self.seen),
            commands: std::mem::take(&mut self.commands),
            seconds: begun.elapsed().as_secs_f64(),
        });
        self.report.steps.last().is_some_and(|s| s.ok)
    }

    /// What was told so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What was told, at the end.
    pub fn into_report(self) -> Report {
        self.report
    }

    /// Notes a duration for the closing table.
    pub fn time(&mut self, what: &str, took: Duration, expected: Option<f64>) {
        self.report.timings.push(Timing { what: what.to_owned(), seconds: took.as_secs_f64(), expected });
    }

    /// A name that no earlier telling of the step has used.
    pub(super) fn name(&self, base: &str) -> String {
        match self.told_before {
            0 => base.to_owned(),
            before => format!("{base}-again{before}"),
        }
    }

    /// Prints, unless quiet.
    pub(super) fn say(&self, text: &str) {
        if !self.options.quiet {
            print!("{text}");
        }
    }

    /// Prints a fact that was checked.
    pub(super) fn fact(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.say(&format!("   ✓ {text}\n"));
        self.seen.push(text);
    }

    /// Runs and shows `kubectl ARGS…`.
    pub(super) async fn kubectl(&mut self, args: &[&str]) -> Result<Ran, Problem> {
        let ran = self.look(args).await?;
        Ok(self.show(ran))
    }

    /// Runs and shows `kubectl VERB -f FILE`.
    pub(super) async fn apply(&mut self, verb: &str, file: &str, manifest: &str) -> Result<Ran, Problem> {
        let args: Vec<&str> = verb.split(' ').chain(["-f", "-"]).collect();
        let mut ran = self.run(&args, manifest).await?;
        ran.command = format!("kubectl {verb} -f {file}");
        Ok(self.show(ran))
    }

    /// Runs and shows a program of ours against the cluster.
    pub(super) async fn program(&mut self, shown: &str, args: &[&str]) -> Result<Ran, Problem> {
        let mut command = Command::new(&self.options.sink);
        command.args(args).env("KUBECONFIG", self.cluster.kubeconfig()).kill_on_drop(true);
        let output = command.output().await.map_err(|e| format!("`{shown}` could not be run: {e}"))?;
        let ran = Ran {
            command: shown.to_owned(),
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        Ok(self.show(ran))
    }

    /// Runs `kubectl ARGS…` without showing it (for waiting).
    pub(super) async fn look(&self, args: &[&str]) -> Result<Ran, Problem> {
        self.run(args, "").await
    }

    async fn run(&self, args: &[&str], input: &str) -> Result<Ran, Problem> {
        let output = self.cluster.try_kubectl(args, input.as_bytes()).await.map_err(|e| e.to_string())?;
        Ok(Ran {
            command: format!("kubectl {}", args.join(" ")),
            ok: output.success,
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }

    /// Looks again and again until `seen` says so; what it last saw otherwise.
    pub(super) async fn until<T, F: Future<Output = Result<Result<T, String>, Problem>>>(
        &self,
        what: &str,
        patience: Duration,
        mut seen: impl FnMut() -> F,
    ) -> Result<T, Problem> {
        let deadline = Instant::now() + patience;
        loop {
            match seen().await? {
                Ok(value) => return Ok(value),
                Err(last) if Instant::now() >= deadline => {
                    return Err(format!("waited {} s for {what}; last seen: {last}", patience.as_secs()));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Prints a command and what it said. Of a long answer the end is shown: there `kubectl describe` has the Events.
    fn show(&mut self, ran: Ran) -> Ran {
        self.say(&format!("   $ {}\n", ran.command.replace('\n', "\\n")));
        let screen = ran.screen();
        let lines: Vec<_> = screen.trim_end().lines().collect();
        let left_out = lines.len().saturating_sub(SHOWN_LINES);
        if left_out > 0 {
            self.say(&format!("     … {left_out} lines, then\n"));
        }
        for line in lines.iter().skip(left_out) {
            self.say(&format!("     {line}\n"));
        }
        self.commands.push(CommandReport { command: ran.command.clone(), ok: ran.ok, output: screen });
        ran
    }
}
