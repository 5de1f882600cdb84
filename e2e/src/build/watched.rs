//! Runs a builder and tells how far it is.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::beside::is_unwanted;
use crate::harness::error::{Error, Result};
use crate::harness::process::{spawn, terminate_group};
use crate::harness::progress::print_line;

/// Builds that take less than this are not worth a word.
const QUIET: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(15);
/// Whether anybody still waits is asked this often.
const ASK: Duration = Duration::from_millis(200);

/// Runs a builder to its end and returns its standard output. Its standard error is one line per unit
/// of work, as both `go build -v` and `cargo build` have it; from that the progress is told.
pub(super) fn run(mut command: Command, what: &str, estimate: &str) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = spawn(command).map_err(Error::io(format!("starting the build of {what}")))?;
    let stderr = child.stderr.take();
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.map(|mut stdout| stdout.read_to_string(&mut text));
        text
    });
    let process = child.id();
    let last = tell(stderr, what, estimate, started, process);
    let status = child.wait().map_err(Error::io(format!("waiting for the build of {what}")))?;
    let output = reader.join().unwrap_or_default();
    if is_unwanted() {
        return Err(Error::Invalid(format!("the build of {what} was stopped")));
    }
    if !status.success() {
        return Err(Error::Build { what: what.to_owned(), status: status.to_string(), tail: last });
    }
    if started.elapsed() > QUIET {
        print_line(&format!("built {what} in {} s", started.elapsed().as_secs()));
    }
    Ok(output)
}

/// Reads the builder's lines until it closes them; returns the last ones.
fn tell(stderr: Option<ChildStderr>, what: &str, estimate: &str, started: Instant, process: u32) -> String {
    let (lines, inbox) = channel();
    std::thread::spawn(move || {
        for line in stderr
            .into_iter()
            .flat_map(|stderr| BufReader::new(stderr).lines())
            .map_while(std::io::Result::ok)
        {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    let mut last: VecDeque<String> = VecDeque::new();
    let mut count = 0_usize;
    let mut next = started + QUIET;
    let mut stopped = false;
    loop {
        if !stopped && is_unwanted() {
            // It is not waited for before its output is closed, so its id is still its own. One that ended just now
            // needs no signal.
            stopped = true;
            let _ = terminate_group(process);
            print_line(&format!("the build of {what} is stopped"));
        }
        match inbox.recv_timeout(next.saturating_duration_since(Instant::now()).min(ASK)) {
            Ok(line) => {
                count += 1;
                last.push_back(line);
                if last.len() > 40 {
                    last.pop_front();
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Vec::from(last).join("\n"),
        }
        if Instant::now() >= next {
            let estimate = if estimate.is_empty() { String::new() } else { format!(" ({estimate})") };
            let now = last.back().map_or("", String::as_str).trim();
            let seconds = started.elapsed().as_secs();
            print_line(&format!("building {what}{estimate}: {seconds} s, {count} steps, now {now}"));
            next = Instant::now() + EVERY;
        }
    }
}
