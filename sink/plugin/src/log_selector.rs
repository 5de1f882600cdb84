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
