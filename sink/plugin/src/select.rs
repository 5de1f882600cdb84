//! Which part of a Job's logs was asked for. Pure.

use job_handler_shared::result::{pods::Section, sections::heading};

use crate::{ReadError, sanitize::line, source::Stored};

/// What was asked for; nothing of it = everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// This container.
    pub container: Option<&'a str>,
    /// This pod.
    pub pod: Option<&'a str>,
    /// The runs before the last restart.
    pub previous: bool,
}

/// Lets the sections that were asked for through, whatever pieces the text comes in.
#[derive(Debug)]
pub struct Picker {
    /// None = everything. By offset, each with its heading where several were asked for.
    sections: Option<std::collections::VecDeque<(Section, String)>>,
    /// Bytes seen.
    at: u64,
    /// The last byte let through was a line's end, or nothing was.
    line_ended: bool,
}

impl Picker {
    /// Of a result's logs.
    ///
    /// # Errors
    /// Where there is nothing like that: tells what there is.
    pub fn new(stored: &Stored, wanted: Wanted<'_>) -> Result<Self, ReadError> {
        let mut picker = Self { sections: None, at: 0, line_ended: true };
        if wanted.container.is_none() && wanted.pod.is_none() && !wanted.previous {
            return Ok(picker);
        }
        let (mut picked, mut all) = (Vec::new(), Vec::new());
        for pod in &stored.manifest.pods {
            for container in &pod.containers {
                for log in &container.logs {
                    let Some(section) = log.section else { continue };
                    let run = if log.previous { " (previous)" } else { "" };
                    all.push(format!("{}/{}{run}", pod.name, container.name));
                    if wanted.pod.is_none_or(|pod_wanted| pod_wanted == pod.name)
                        && wanted.container.is_none_or(|name| name == container.name)
                        && wanted.previous == log.previous
                    {
                        picked.push((section, heading(&pod.name, &container.name, log.previous)));
                    }
                }
            }
        }
        if picked.is_empty() {
            return Err(ReadError::NotFound(nothing(stored, wanted, &all)));
        }
        if let [(_, heading)] = picked.as_mut_slice() {
            heading.clear();
        }
        picked.sort_by_key(|(section, _)| section.offset);
        picker.sections = Some(picked.into());
        Ok(picker)
    }

    /// What of the next piece was asked for.
    pub fn push<'a>(&mut self, piece: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        let from = self.at;
        self.at += piece.len() as u64;
        let Some(sections) = &mut self.sections else { return piece.into() };
        let mut out = Vec::new();
        while let Some((section, heading)) = sections.front_mut() {
            let end = section.offset.saturating_add(section.bytes);
            if section.offset >= self.at && section.bytes > 0 || section.offset > self.at {
                break;
            }
            if !heading.is_empty() {
                if !self.line_ended {
                    out.push(b'\n');
                }
                out.extend_from_slice(std::mem::take(heading).as_bytes());
            }
            // Positions within the piece, which is in memory.
            let within = |position: u64| usize::try_from(position.clamp(from, self.at) - from).unwrap_or(0);
            out.extend_from_slice(&piece[within(section.offset)..within(end)]);
            if let Some(last) = out.last() {
                self.line_ended = *last == b'\n';
            }
            if end > self.at {
                break;
            }
            sections.pop_front();
        }
        out.into()
    }
}

fn nothing(stored: &Stored, wanted: Wanted<'_>, all: &[String]) -> String {
    let job = &stored.manifest.job;
    let mut text = format!("the result of Job {}/{} has no log", job.namespace, job.name);
    if wanted.previous {
        text.push_str(" of a run before a restart");
    }
    if let Some(container) = wanted.container {
        text.push_str(&format!(" of a container {container}"));
    }
    if let Some(pod) = wanted.pod {
        text.push_str(&format!(" of a pod {pod}"));
    }
    match (all, stored.manifest.pods_not_listed) {
        ([], _) => {}
        (all, 0) => text.push_str(&format!("; there are {}", line(&all.join(", ")))),
        (all, more) => text.push_str(&format!(
            "; there are {}, and those of {more} more pods, which `logs` writes where nothing is picked",
            line(&all.join(", "))
        )),
    }
    text
}
