//! The line of a text that tells best why a process ended: of a termination message, or of the end of a log. Pure.

use job_handler_shared::text::escape_unsafe;

/// Kinds of stack traces: what the header looks like, and where the line is that names the error.
const TRACES: [Trace; 4] = [
    Trace { is_header: is_python_header, is_frame: is_indented, error: ErrorPlace::AfterFrames },
    Trace { is_header: is_go_header, is_frame: |_| true, error: ErrorPlace::Header },
    // Java, and others that write `at …` below the error.
    Trace { is_header: |line| !is_java_frame(line), is_frame: is_java_frame, error: ErrorPlace::Header },
    // Its beginning is cut off.
    Trace { is_header: is_java_cause, is_frame: is_java_frame, error: ErrorPlace::Header },
];

/// What the stack traces of a language look like.
struct Trace {
    is_header: fn(&str) -> bool,
    is_frame: fn(&str) -> bool,
    error: ErrorPlace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ErrorPlace {
    Header,
    AfterFrames,
}

/// The line that tells best why a process ended; empty if there is none. Of a text that is the end of a log, it is the last
/// line, else the first one; but if a stack trace is there (in a log: at its end), the line of it that names the error.
pub(crate) fn telling_line(text: &str, is_log_end: bool) -> String {
    let lines: Vec<String> =
        text.lines().map(without_colours).filter(|line| !line.trim().is_empty()).collect();
    let of_trace = TRACES.iter().find_map(|trace| trace.error_in(&lines, is_log_end));
    // Of a trace that is cut off, the header says nothing.
    let mut others = lines.iter().filter(|line| !is_python_header(line));
    let line = of_trace.or_else(|| if is_log_end { others.next_back() } else { others.next() });
    line.map(|line| escape_unsafe(line.trim()).into_owned()).unwrap_or_default()
}

impl Trace {
    /// The line that names the error of the last such trace. Within a log, the trace has to be its end: an error before it
    /// may have been handled.
    fn error_in<'a>(&self, lines: &'a [String], is_log_end: bool) -> Option<&'a String> {
        let header = (0..lines.len().checked_sub(1)?)
            .rfind(|at| (self.is_header)(&lines[*at]) && (self.is_frame)(&lines[at + 1]))?;
        let frames = lines[header + 1..].iter().take_while(|line| (self.is_frame)(line)).count();
        let after = header + 1 + frames;
        let (error, mut end) = match self.error {
            ErrorPlace::Header => (header, after),
            ErrorPlace::AfterFrames => (after, after + 1),
        };
        // The message of an error can have further lines.
        while self.error == ErrorPlace::AfterFrames && lines.get(end).is_some_and(|line| is_indented(line)) {
            end += 1;
        }
        lines.get(error).filter(|_| !is_log_end || end == lines.len())
    }
}

fn is_python_header(line: &str) -> bool {
    line.trim_end().ends_with("Traceback (most recent call last):")
}

fn is_go_header(line: &str) -> bool {
    line.starts_with("panic: ") || line.starts_with("fatal error: ")
}

fn is_java_frame(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("at ") || is_java_cause(line) || (line.starts_with("... ") && line.ends_with(" more"))
}

fn is_java_cause(line: &str) -> bool {
    line.starts_with("Caused by: ")
}

fn is_indented(line: &str) -> bool {
    line.starts_with([' ', '\t'])
}

/// A line without colours. All else on which a terminal would act is escaped in the end.
fn without_colours(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("\u{1b}[") {
        let after = &rest[at + 2..];
        let end = after.find(|c: char| !c.is_ascii_digit() && c != ';');
        match end.filter(|end| after[*end..].starts_with('m')) {
            Some(end) => {
                text.push_str(&rest[..at]);
                rest = &after[end + 1..];
            }
            None => {
                text.push_str(&rest[..at + 2]);
                rest = after;
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: &str =
        "Traceback (most recent call last):\n  File \"a.py\", line 3\n    f()\nValueError: bad row 17\n";
    const JAVA: &str = "Exception in thread \"main\" java.lang.IllegalStateException: bad row 17\n\tat a.B.c(B.java:3)\n\
        \tat a.B.main(B.java:1)\nCaused by: java.io.IOException: closed\n\tat a.B.d(B.java:9)\n\t... 1 more\n";
    const GO: &str =
        "panic: bad row 17\n\ngoroutine 1 [running]:\nmain.main()\n\t/app/main.go:4 +0x1d\nexit status 2\n";

    #[test]
    fn a_message_is_told_by_its_first_line_and_the_end_of_a_log_by_its_last() {
        for (text, of_message, of_log) in [
            ("", "", ""),
            (" \n\n", "", ""),
            ("\nboom\nmore\n \n", "boom", "more"),
            (
                "\u{1b}[31mERROR\u{1b}[0m disk \u{1b}[1mfull\u{1b}[0m\r\n",
                "ERROR disk full",
                "ERROR disk full",
            ),
            ("a\u{202e}b\u{1b}[2Jc", "a\\u202eb\\u001b[2Jc", "a\\u202eb\\u001b[2Jc"),
        ] {
            assert_eq!(
                (telling_line(text, false).as_str(), telling_line(text, true).as_str()),
                (of_message, of_log)
            );
        }
    }

    #[test]
    fn a_stack_trace_is_told_by_the_line_that_names_the_error() {
        let java = "Exception in thread \"main\" java.lang.IllegalStateException: bad row 17";
        let second = PYTHON.replace("ValueError: bad row 17", "OSError: no room\n  on /tmp");
        let chained = format!("{PYTHON}\nDuring handling of it, another occurred:\n\n{second}");
        for (trace, error) in [
            (PYTHON, "ValueError: bad row 17"),
            (JAVA, java),
            (GO, "panic: bad row 17"),
            ("Error: bad row 17\n    at f (/a.js:3:1)\n    at g (/a.js:9:1)\n", "Error: bad row 17"),
        ] {
            for is_log_end in [false, true] {
                assert_eq!(telling_line(trace, is_log_end), error);
                assert_eq!(telling_line(&format!("INFO begin\n{trace}"), is_log_end), error);
            }
            // An error that was handled is followed by other lines; a panic is not.
            let later = if trace == GO { error } else { "ERROR: no such table" };
            assert_eq!(telling_line(&format!("{trace}ERROR: no such table\n"), true), later);
        }
        assert_eq!(telling_line(&chained, true), "OSError: no room");
        // Cut off, at either end.
        assert_eq!(
            telling_line("Traceback (most recent call last):\n  File \"a.py\"\n", false),
            "File \"a.py\""
        );
        assert_eq!(telling_line("Traceback (most recent call last):", true), "");
        let cause = "Caused by: java.io.IOException: closed";
        assert_eq!(
            telling_line(&format!("\tat a.B.c(B.java:3)\n{cause}\n\tat a.B.d(B.java:9)\n"), true),
            cause
        );
        assert_eq!(telling_line("  File \"a.py\"\nValueError: bad row 17\n", true), "ValueError: bad row 17");
    }

    #[test]
    fn any_text_has_at_most_one_line() {
        for text in
            ["\tat x\n\tat y", "panic: \n", "Traceback (most recent call last):\n\n\n x", "\u{1b}[", "\u{1b}"]
        {
            for is_log_end in [false, true] {
                assert!(!telling_line(text, is_log_end).contains(['\n', '\u{1b}']), "{text:?}");
            }
        }
    }
}
