//! Selects sections of a Job's stored logs while they stream. No I/O.

use std::collections::VecDeque;

use job_handler_shared::result::{pods::Section, sections::heading};

use crate::{error::PluginError, result_source::JobResult, terminal::escape_line};

/// The default selects all logs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogFilter<'a> {
    pub(crate) container: Option<&'a str>,
    pub(crate) pod: Option<&'a str>,
    /// Runs before the last restart.
    pub(crate) previous: bool,
}

impl LogFilter<'_> {
    pub(crate) fn selects_all(&self) -> bool {
        self.container.is_none() && self.pod.is_none() && !self.previous
    }

    pub(crate) fn selects(&self, pod: &str, container: &str, previous: bool) -> bool {
        self.pod.is_none_or(|name| name == pod)
            && self.container.is_none_or(|name| name == container)
            && self.previous == previous
    }
}

/// Passes on the selected sections of logs that come in pieces of any size.
#[derive(Debug)]
pub(crate) struct LogSelector {
    /// None = everything. Sorted by offset; each has a heading if several are selected.
    sections: Option<VecDeque<(Section, String)>>,
    /// Bytes seen.
    position: u64,
    /// The output is at the start of a line.
    at_line_start: bool,
}

impl LogSelector {
    /// # Errors
    /// If no log of the result matches: the message lists its logs.
    pub(crate) fn new(result: &JobResult, filter: LogFilter<'_>) -> Result<Self, PluginError> {
        let mut selector = Self { sections: None, position: 0, at_line_start: true };
        if filter.selects_all() {
            return Ok(selector);
        }
        let (mut selected, mut all) = (Vec::new(), Vec::new());
        for pod in &result.manifest.pods {
            for container in &pod.containers {
                for log in &container.logs {
                    let Some(section) = log.section else { continue };
                    let run = if log.previous { " (previous)" } else { "" };
                    all.push(format!("{}/{}{run}", pod.name, container.name));
                    if filter.selects(&pod.name, &container.name, log.previous) {
                        selected.push((section, heading(&pod.name, &container.name, log.previous)));
                    }
                }
            }
        }
        if selected.is_empty() {
            return Err(PluginError::NotFound(no_match(result, filter, &all)));
        }
        if let [(_, heading)] = selected.as_mut_slice() {
            heading.clear();
        }
        selected.sort_by_key(|(section, _)| section.offset);
        selector.sections = Some(selected.into());
        Ok(selector)
    }

    /// Returns the selected bytes of the next piece.
    pub(crate) fn select<'a>(&mut self, piece: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        let start = self.position;
        self.position += piece.len() as u64;
        let Some(sections) = &mut self.sections else { return piece.into() };
        let mut out = Vec::new();
        while let Some((section, heading)) = sections.front_mut() {
            let end = section.offset.saturating_add(section.bytes);
            if section.offset >= self.position && section.bytes > 0 || section.offset > self.position {
                break;
            }
            if !heading.is_empty() {
                if !self.at_line_start {
                    out.push(b'\n');
                }
                out.extend_from_slice(std::mem::take(heading).as_bytes());
            }
            // The piece is in memory, so its offsets fit in usize.
            let in_piece =
                |position: u64| usize::try_from(position.clamp(start, self.position) - start).unwrap_or(0);
            out.extend_from_slice(&piece[in_piece(section.offset)..in_piece(end)]);
            if let Some(last) = out.last() {
                self.at_line_start = *last == b'\n';
            }
            if end > self.position {
                break;
            }
            sections.pop_front();
        }
        out.into()
    }
}

fn no_match(result: &JobResult, filter: LogFilter<'_>, all: &[String]) -> String {
    let job = &result.manifest.job;
    let mut text = format!("the result of Job {}/{} has no log", job.namespace, job.name);
    if filter.previous {
        text.push_str(" from before a restart");
    }
    if let Some(container) = filter.container {
        text.push_str(&format!(" of container {container}"));
    }
    if let Some(pod) = filter.pod {
        text.push_str(&format!(" of pod {pod}"));
    }
    match (all, result.manifest.pods_not_listed) {
        ([], _) => {}
        (all, 0) => text.push_str(&format!("; it has logs of {}", escape_line(&all.join(", ")))),
        (all, more) => text.push_str(&format!(
            "; it has logs of {}, and of {more} more pods, which are printed only without -c, --pod and -p",
            escape_line(&all.join(", "))
        )),
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::test_results::{manifest, result_of};

    /// Pod, container, whether it is the previous run, content.
    type StoredRunLog = (&'static str, &'static str, bool, &'static str);

    const LOGS: &[StoredRunLog] = &[
        ("p", "main", true, "before\n"),
        // No line end, and a line that looks like a heading.
        ("p", "main", false, "=== Pod: q / Container: main ===\nof p"),
        ("p", "helper", false, "helps\n"),
        ("q", "main", false, "of q\n"),
        ("q", "helper", false, ""),
    ];

    /// A result with these logs, and their stored text.
    fn stored(logs: &[StoredRunLog]) -> (JobResult, String) {
        let (mut text, mut pods) = (String::new(), Vec::new());
        for (pod, container, previous, content) in logs {
            text.push_str(&heading(pod, container, *previous));
            let section = json!({"offset": text.len(), "bytes": content.len()});
            text.push_str(content);
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let log = json!({"previous": previous, "length": content.len(), "section": section});
            pods.push(pod_with_log(pod, container, log));
        }
        // The order of pods is not that of the text.
        pods.reverse();
        let mut manifest = manifest("build", "u", 1);
        manifest["pods"] = pods.into();
        (result_of(&manifest), text)
    }

    fn pod_with_log(pod: &str, container: &str, log: Value) -> Value {
        json!({"name": pod, "uid": pod, "phase": "Failed", "containers": [{"name": container, "kind": "main",
            "image": "", "ready": false, "restartCount": 0, "state": {"phase": "terminated"}, "logs": [log]}]})
    }

    fn filter<'a>(container: &'a str, pod: &'a str, previous: bool) -> LogFilter<'a> {
        let some = |name: &'a str| (!name.is_empty()).then_some(name);
        LogFilter { container: some(container), pod: some(pod), previous }
    }

    fn select(result: &JobResult, filter: LogFilter<'_>, text: &str, piece: usize) -> String {
        let mut selector = LogSelector::new(result, filter).unwrap();
        let selected: Vec<u8> =
            text.as_bytes().chunks(piece).flat_map(|piece| selector.select(piece).into_owned()).collect();
        String::from_utf8(selected).unwrap()
    }

    #[test]
    fn flags_select_logs_for_any_size_of_the_pieces() {
        let (result, text) = stored(LOGS);
        let of_p = "=== Pod: q / Container: main ===\nof p";
        for (filter, expected) in [
            (filter("", "", false), text.clone()),
            // A single log is printed as it is.
            (filter("main", "p", false), of_p.to_owned()),
            (filter("", "", true), "before\n".to_owned()),
            (filter("main", "p", true), "before\n".to_owned()),
            (filter("helper", "q", false), String::new()),
            // Several logs have headings, each at the start of a line.
            (
                filter("main", "", false),
                format!("=== Pod: p / Container: main ===\n{of_p}\n=== Pod: q / Container: main ===\nof q\n"),
            ),
            (
                filter("", "q", false),
                "=== Pod: q / Container: main ===\nof q\n=== Pod: q / Container: helper ===\n".to_owned(),
            ),
        ] {
            for piece in 1..=text.len() {
                assert_eq!(select(&result, filter, &text, piece), expected, "{filter:?}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn logs_that_are_shorter_than_recorded_are_selected_as_far_as_they_go() {
        let (result, text) = stored(LOGS);
        let end = text.find("of p").unwrap() + 2;
        assert_eq!(
            select(&result, filter("main", "", false), &text[..end], 7),
            "=== Pod: p / Container: main ===\n=== Pod: q / Container: main ===\nof"
        );
    }

    #[test]
    fn a_line_about_a_gap_is_part_of_its_log() {
        let log = "first\n[... 80 of 91 bytes left out ...]\nlast\n";
        let (result, text) = stored(&[("p", "main", false, log), ("p", "helper", false, "helps\n")]);
        assert_eq!(select(&result, filter("main", "", false), &text, 11), log);
    }

    fn error(result: &JobResult, filter: LogFilter<'_>) -> String {
        LogSelector::new(result, filter).unwrap_err().to_string()
    }

    #[test]
    fn a_filter_without_a_match_lists_the_logs_that_exist() {
        let (mut result, _) = stored(&LOGS[..3]);
        let exist = "; it has logs of p/helper, p/main, p/main (previous)";
        for (filter, expected) in [
            (filter("mian", "", false), "has no log of container mian"),
            // Each name exists, but not in this combination.
            (filter("helper", "p", true), "has no log from before a restart of container helper of pod p"),
            (filter("", "q", false), "has no log of pod q"),
        ] {
            let expected = format!("the result of Job ci/build {expected}{exist}");
            assert_eq!(error(&result, filter), expected);
        }
        result.manifest.pods_not_listed = 7;
        let text = error(&result, filter("", "q", false));
        assert!(
            text.contains(&format!("{exist}, and of 7 more pods, which are printed only without")),
            "{text}"
        );
    }

    #[test]
    fn a_log_that_was_not_stored_cannot_be_selected() {
        let mut manifest = manifest("build", "u", 1);
        manifest["pods"] = json!([pod_with_log("p", "main", json!({"length": 5, "lost": "refused"}))]);
        let text = error(&result_of(&manifest), filter("main", "", false));
        assert_eq!(text, "the result of Job ci/build has no log of container main");
    }
}
