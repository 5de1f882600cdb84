//! Runs the commands of a step, prints them with their output, waits for conditions, and records facts and timings.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::cluster::Cluster;
use crate::demo::report::{CommandReport, DemoReport, StepReport, Timing};

/// Pause between two polls of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Lines of a command's output that are printed at most.
const PRINTED_LINES: usize = 12;

/// Options of the demo.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The `job-handler-sink` program, for its `prune` command.
    pub sink: PathBuf,
    /// How long a step waits for each condition.
    pub patience: Duration,
    /// Whether to print nothing.
    pub quiet: bool,
}

/// The result of a command.
#[derive(Clone, Debug)]
pub(super) struct CommandOutput {
    /// The command line.
    pub(super) command: String,
    /// Whether it exited with 0.
    pub(super) ok: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl CommandOutput {
    /// Both outputs, as a terminal shows them.
    pub(super) fn screen(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// The message of a failed step.
pub(super) type StepError = String;

/// The builds that the steps have created so far; later steps use those of earlier ones.
#[derive(Debug, Default)]
pub(super) struct Builds {
    /// Names of the running ones. The tenth fails.
    pub(super) running: Vec<String>,
    /// Name of the last one that was refused.
    pub(super) refused: Option<String>,
}

/// Runs steps on one cluster and collects their report.
pub struct DemoRunner<'a> {
    cluster: &'a Cluster,
    pub(super) options: DemoOptions,
    pub(super) builds: Builds,
    /// The number of earlier runs of the current step: object names differ between runs.
    earlier_runs: usize,
    report: DemoReport,
    commands: Vec<CommandReport>,
    facts: Vec<String>,
}

impl<'a> DemoRunner<'a> {
    /// A runner that has run no step yet.
    pub fn new(cluster: &'a Cluster, options: DemoOptions) -> Self {
        Self {
            cluster,
            options,
            builds: Builds::default(),
            earlier_runs: 0,
            report: DemoReport::default(),
            commands: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// Changes how long a step waits for each condition.
    pub fn set_patience(&mut self, patience: Duration) {
        self.options.patience = patience;
    }

    /// The steps that have run so far.
    pub fn report(&self) -> &DemoReport {
        &self.report
    }

    /// The report of all steps.
    pub fn into_report(self) -> DemoReport {
        self.report
    }

    /// Records a duration for the closing table.
    pub(super) fn record_time(&mut self, what: &str, took: Duration, expected: Option<f64>) {
        self.report.timings.push(Timing { what: what.to_owned(), seconds: took.as_secs_f64(), expected });
    }

    /// Prints a step's heading.
    pub(super) fn begin_step(&mut self, name: &str, title: &str) {
        self.earlier_runs = self.report.steps.iter().filter(|step| step.name == name).count();
        let number = self.report.steps.len() + 1;
        self.print(&format!("\n{number}. {title}\n"));
    }

    /// Adds a step to the report and returns whether it passed.
    pub(super) fn end_step(
        &mut self,
        name: &'static str,
        title: &'static str,
        took: Duration,
        result: Result<(), StepError>,
    ) -> bool {
        if let Err(problem) = &result {
            self.print(&format!("   ✗ FAILED: {problem}\n"));
        }
        let ok = result.is_ok();
        self.report.steps.push(StepReport {
            name,
            title,
            ok,
            problem: result.err(),
            seen: std::mem::take(&mut self.facts),
            commands: std::mem::take(&mut self.commands),
            seconds: took.as_secs_f64(),
        });
        ok
    }

    /// An object name that no earlier run of the step has used.
    pub(super) fn unique_name(&self, base: &str) -> String {
        match self.earlier_runs {
            0 => base.to_owned(),
            runs => format!("{base}-again{runs}"),
        }
    }

    /// Prints, unless quiet.
    pub(super) fn print(&self, text: &str) {
        if !self.options.quiet {
            print!("{text}");
        }
    }

    /// Prints and records a fact that was checked.
    pub(super) fn fact(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.print(&format!("   ✓ {text}\n"));
        self.facts.push(text);
    }

    /// Lets the running builds end.
    pub(super) async fn end_builds(&self) -> Result<(), StepError> {
        for build in &self.builds.running {
            let ended = self.cluster.end_pod_of("ci", build, self.options.patience).await;
            ended.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Runs and prints `kubectl ARGS…`.
    pub(super) async fn kubectl(&mut self, args: &[&str]) -> Result<CommandOutput, StepError> {
        let output = self.kubectl_quietly(args).await?;
        Ok(self.show(output))
    }

    /// Runs and prints `kubectl VERB -f FILE`.
    pub(super) async fn kubectl_file(
        &mut self,
        verb: &str,
        file: &str,
        manifest: &str,
    ) -> Result<CommandOutput, StepError> {
        let mut output = self.run_kubectl(&[verb, "-f", "-"], manifest).await?;
        output.command = format!("kubectl {verb} -f {file}");
        Ok(self.show(output))
    }

    /// Runs and prints `job-handler-sink ARGS…` against the cluster.
    pub(super) async fn sink(&mut self, args: &[&str]) -> Result<CommandOutput, StepError> {
        let mut command = Command::new(&self.options.sink);
        command.args(args).env("KUBECONFIG", self.cluster.kubeconfig()).kill_on_drop(true);
        let shown = format!("job-handler-sink {}", args.join(" "));
        let output = command.output().await.map_err(|error| format!("could not run `{shown}`: {error}"))?;
        let output = CommandOutput {
            command: shown,
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        Ok(self.show(output))
    }

    /// Runs `kubectl ARGS…` without printing it.
    pub(super) async fn kubectl_quietly(&self, args: &[&str]) -> Result<CommandOutput, StepError> {
        self.run_kubectl(args, "").await
    }

    /// Runs `kubectl ARGS…` without printing it until its output passes the test. The error has the last output.
    pub(super) async fn wait_for_output(
        &self,
        what: &str,
        patience: Duration,
        args: &[&str],
        passes: impl Fn(&CommandOutput) -> bool,
    ) -> Result<(), StepError> {
        let deadline = Instant::now() + patience;
        loop {
            let output = self.kubectl_quietly(args).await?;
            if passes(&output) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (seconds, command) = (patience.as_secs(), output.command.as_str());
                return Err(format!(
                    "timed out after {seconds} s waiting for {what}; last output of `{command}`:\n{}",
                    output.screen()
                ));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn run_kubectl(&self, args: &[&str], input: &str) -> Result<CommandOutput, StepError> {
        let output =
            self.cluster.try_kubectl(args, input.as_bytes()).await.map_err(|error| error.to_string())?;
        Ok(CommandOutput {
            command: format!("kubectl {}", args.join(" ")),
            ok: output.success,
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }

    /// Prints a command and the end of its output, which is where `kubectl describe` shows the Events.
    fn show(&mut self, output: CommandOutput) -> CommandOutput {
        self.print(&format!("   $ {}\n", output.command.replace('\n', "\\n")));
        let screen = output.screen();
        let lines: Vec<_> = screen.trim_end().lines().collect();
        let omitted = lines.len().saturating_sub(PRINTED_LINES);
        if omitted > 0 {
            self.print(&format!("     … ({omitted} lines omitted)\n"));
        }
        for line in lines.iter().skip(omitted) {
            self.print(&format!("     {line}\n"));
        }
        self.commands.push(CommandReport { command: output.command.clone(), ok: output.ok, output: screen });
        output
    }
}
