//! Runs a build command and prints its progress.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::build::cancellable::is_cancelled;
use crate::build::progress::ProgressLine;
use crate::harness::error::{Error, Result};
use crate::harness::process::{spawn, terminate_group};

/// How often the build checks whether it was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(200);
/// The number of last output lines in the error of a failed build.
const TAIL: usize = 40;

/// A builder that writes one line per step to standard error, as `go build -v` and `cargo build` do.
pub(super) struct Builder<'a> {
    /// The name of the result in progress lines and errors.
    pub(super) what: &'a str,
    /// The usual duration, as text.
    pub(super) duration: &'a str,
    /// The number of steps, if known.
    pub(super) steps: Option<usize>,
}

impl Builder<'_> {
    /// Runs the builder to its end and returns its standard output.
    pub(super) fn run(&self, mut command: Command) -> Result<String> {
        let what = self.what;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut progress = ProgressLine::new(what, self.duration, self.steps);
        let mut child = spawn(command).map_err(Error::io(format!("starting the build of {what}")))?;
        let stdout = child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.map(|mut stdout| stdout.read_to_string(&mut text));
            text
        });
        let lines = read_lines(child.stderr.take());
        let tail = follow(&lines, &mut progress, child.id());
        let status = child.wait().map_err(Error::io(format!("waiting for the build of {what}")))?;
        let output = reader.join().unwrap_or_default();
        if is_cancelled() {
            progress.finish("stopped the build of");
            return Err(Error::Invalid(format!("the build of {what} was stopped")));
        }
        if !status.success() {
            progress.finish("failed to build");
            return Err(Error::Build { what: what.to_owned(), status: status.to_string(), tail });
        }
        progress.finish("built");
        Ok(output)
    }
}

fn read_lines(stderr: Option<ChildStderr>) -> Receiver<String> {
    let (lines, inbox) = channel();
    std::thread::spawn(move || {
        let reader = stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines());
        for line in reader.map_while(std::io::Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    inbox
}

/// Counts the builder's lines until it closes standard error; returns the last ones. Terminates the builder if the
/// build is cancelled.
fn follow(lines: &Receiver<String>, progress: &mut ProgressLine, process: u32) -> String {
    let mut tail: VecDeque<String> = VecDeque::new();
    let mut terminated = false;
    loop {
        if !terminated && is_cancelled() {
            terminated = true;
            // The process was not reaped yet, so its id is not reused, even if it has exited.
            let _ = terminate_group(process);
        }
        let timeout = progress.next().saturating_duration_since(Instant::now()).min(CANCEL_INTERVAL);
        match lines.recv_timeout(timeout) {
            Ok(line) => {
                progress.step_done();
                tail.push_back(line);
                if tail.len() > TAIL {
                    tail.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Vec::from(tail).join("\n"),
        }
        progress.print_if_due();
    }
}
