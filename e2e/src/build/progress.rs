//! The progress line of a build: one line that is overwritten on a terminal, a line a minute elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shorter builds print nothing.
const QUIET: Duration = Duration::from_secs(3);
const EVERY_ON_TERMINAL: Duration = Duration::from_secs(1);
const EVERY_ELSEWHERE: Duration = Duration::from_secs(60);
/// Return to the start of the line and erase it (ECMA-48).
const ERASE_LINE: &str = "\r\x1b[K";

/// Prints the progress of a build.
pub(super) struct ProgressLine {
    state: BuildState,
    started: Instant,
    terminal: bool,
    next: Instant,
    printed: bool,
}

/// The values of a progress line.
struct BuildState {
    what: String,
    /// The usual duration, as text.
    usual: String,
    /// The number of steps, if known.
    steps: Option<usize>,
    done: usize,
}

impl ProgressLine {
    pub(super) fn new(what: &str, usual: &str, steps: Option<usize>) -> Self {
        let started = Instant::now();
        Self {
            state: BuildState { what: what.to_owned(), usual: usual.to_owned(), steps, done: 0 },
            started,
            terminal: std::io::stderr().is_terminal(),
            next: started + QUIET,
            printed: false,
        }
    }

    /// Counts a step.
    pub(super) fn step_done(&mut self) {
        self.state.done += 1;
    }

    /// The time of the next line.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Prints the line if it is due.
    pub(super) fn print_if_due(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let line = self.state.line(now.duration_since(self.started));
        self.printed = true;
        self.next = now + if self.terminal { EVERY_ON_TERMINAL } else { EVERY_ELSEWHERE };
        self.write(&line, !self.terminal);
    }

    /// Replaces the line with the outcome; a short build prints nothing.
    pub(super) fn finish(&self, outcome: &str) {
        if self.printed {
            let elapsed = display(self.started.elapsed());
            self.write(&format!("{outcome} {} after {elapsed}", self.state.what), true);
        }
    }

    fn write(&self, line: &str, ends: bool) {
        let start = if self.terminal { ERASE_LINE } else { "" };
        let end = if ends { "\n" } else { "" };
        let mut stderr = std::io::stderr().lock();
        // A closed standard error is no reason to fail. Not eprint!, which libtest captures.
        let _ = write!(stderr, "{start}{line}{end}").and_then(|()| stderr.flush());
    }
}

impl BuildState {
    fn line(&self, elapsed: Duration) -> String {
        let Self { what, usual, steps, done } = self;
        match steps {
            Some(steps) if *steps > 0 => {
                // The linker runs after the last step.
                let share = *done as f64 / steps.max(done).saturating_add(1) as f64;
                let left = time_left(share, elapsed)
                    .map_or_else(|| format!("{usual} in all"), |left| format!("{} left", display(left)));
                format!("building {what}: {:.0}%, {left}", (share * 100.0).floor())
            }
            _ => format!("building {what} ({usual}): {}", display(elapsed)),
        }
    }
}

/// The remaining time, extrapolated from the progress so far; `None` in the first tenth, where the estimate is
/// unreliable.
fn time_left(share: f64, elapsed: Duration) -> Option<Duration> {
    (share >= 0.1).then(|| elapsed.mul_f64((1.0 - share) / share))
}

fn display(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds} s") } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(steps: Option<usize>, done: usize) -> BuildState {
        BuildState { what: "Kubernetes".to_owned(), usual: "about 9 minutes".to_owned(), steps, done }
    }

    #[test]
    fn the_line_has_a_percentage_and_the_time_left() {
        let line = |steps, done, seconds| state(steps, done).line(Duration::from_secs(seconds));
        assert_eq!(line(Some(1999), 500, 100), "building Kubernetes: 25%, 5 min 0 s left");
        assert_eq!(line(Some(1999), 1900, 95), "building Kubernetes: 95%, 5 s left");
        assert_eq!(line(Some(1999), 100, 4), "building Kubernetes: 5%, about 9 minutes in all");
        assert_eq!(line(Some(2000), 2001, 100), "building Kubernetes: 99%, 0 s left");
        assert_eq!(line(None, 3, 75), "building Kubernetes (about 9 minutes): 1 min 15 s");
        assert_eq!(line(Some(0), 0, 5), "building Kubernetes (about 9 minutes): 5 s");
    }
}
